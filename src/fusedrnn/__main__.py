"""``python -m fusedrnn`` prints the configuration."""

from fusedrnn.info import show_config

if __name__ == "__main__":
    show_config()
