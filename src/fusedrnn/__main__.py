"""``python -m fusedrnn`` prints the configuration, ``probe`` the machine's limits, ``bench`` how fast it is here."""

import argparse
import sys

from fusedrnn.info import show_config


def main(arguments: list[str]) -> None:
    """Run a command.

    Parameters
    ----------
    arguments : list of str
        A command, "config", "probe" or "bench", and what follows it; nothing is "config".
    """
    parser = argparse.ArgumentParser(prog="python -m fusedrnn", description=__doc__)
    parser.add_argument("command", nargs="?", choices=("config", "probe", "bench"), default="config")
    command = parser.parse_args(arguments[:1]).command
    if command == "bench":
        from fusedrnn.bench import quick

        quick.main(arguments[1:])
        return
    argparse.ArgumentParser(prog=f"{parser.prog} {command}", description=__doc__).parse_args(arguments[1:])
    if command == "probe":
        from fusedrnn.bench import machine

        machine.main()
    else:
        show_config()


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a table may hold what a terminal cannot show
    main(sys.argv[1:])
