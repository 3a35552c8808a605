"""Train a character-level language model with fusedrnn and NumPy alone, and let it write.

First the four letters of "hello", then real text: the source of Python's standard library, or a file given by --text.
The model predicts each character from those before it. Its forward and backward pass stand in `CharLM.learn`, the
training in `train`, the writing in `sample`. There is no validation for early stopping and no search for good options.
"""

import argparse
import itertools
import math
import os
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# The threads of NumPy's products spin for a tenth of a second after each and keep the CPUs from those of fusedrnn: of
# two runs either way those with 2^28 clock cycles, OpenBLAS's own setting, were 1.3 to 1.7 times slower.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "18")

import numpy as np
from tqdm import tqdm

import fusedrnn as fr
from fusedrnn.train import (
    Adam,
    Embedding,
    EmbeddingGradients,
    Linear,
    Optimizer,
    RMSprop,
    assign,
    clip_global_norm,
    join,
    load_arrays,
    one_hot,
    save_arrays,
    softmax,
    softmax_cross_entropy,
)

Array = np.ndarray
CELLS = {"lstm": fr.LSTM, "gru": fr.GRU}
OPTIMIZERS = {"adam": Adam, "rmsprop": RMSprop}

# ------------------------------------------------------------------------------------------------------------- text


class Alphabet:
    """The characters that a model knows, numbered from 0. OTHER, if it is among them, stands for all others."""

    OTHER = "\N{REPLACEMENT CHARACTER}"

    def __init__(self, characters: str) -> None:
        self.characters = characters
        self._numbers = np.full(sys.maxunicode + 1, characters.find(self.OTHER))
        self._numbers[[ord(c) for c in characters]] = np.arange(len(characters))

    @classmethod
    def of(cls, text: str, size: int = 128) -> "Alphabet":
        """The most frequent characters of a text, and OTHER."""
        common = {c for c, _ in Counter(text).most_common(size - 1)}
        return cls("".join(sorted(common | {cls.OTHER})))

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> Array:
        return self._numbers[np.frombuffer(text.encode("utf-32-le", errors="replace"), np.uint32)]

    def decode(self, symbols: Array) -> str:
        return "".join(self.characters[i] for i in symbols)


def read_text(path: Path | None) -> str:
    """The text of a file, or the modules of Python's standard library, joined in the order of their names."""
    paths = [path] if path else sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return "\n".join(p.read_text(encoding="utf-8", errors="replace") for p in paths)


def windows(symbols: Array, batch: int, length: int) -> Iterator[tuple[Array, Array, bool]]:
    """Cut a text into `batch` columns and go down all of them together, `length` characters at a time.

    Yields inputs (T, B), the targets that follow them (T, B), and whether this is the top of the columns. Elsewhere
    each column goes on where its last window ended, so that the state of the cells can be carried over.
    """
    height = (len(symbols) - 1) // batch
    if height < length:
        raise ValueError(f"{len(symbols)} characters are too few for {batch} columns of {length}")
    inputs, targets = (symbols[i : i + height * batch].reshape(batch, height).T for i in (0, 1))
    for t in range(0, height - length + 1, length):
        yield inputs[t : t + length], targets[t : t + length], t == 0


# ------------------------------------------------------------------------------------------------------------ model


class OneHot:
    """What stands in the place of an embedding where nothing is to be learnt: vectors of 0 with a single 1."""

    parameters: dict[str, Array] = {}  # noqa: RUF012

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self, symbols: Array) -> Array:
        return one_hot(symbols, self.count)

    def forward(self, symbols: Array) -> tuple[Array, None]:
        return self(symbols), None

    def backward(self, tape: None, dy: Array) -> EmbeddingGradients:  # noqa: ARG002
        return EmbeddingGradients({})


class CharLM:
    """Characters -> vectors -> recurrent layers -> logits of the next character."""

    def __init__(self, alphabet: Alphabet, cell: str, hidden: int, layers: int, embed: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.alphabet = alphabet
        self.embedding = Embedding(len(alphabet), embed, rng=rng) if embed else OneHot(len(alphabet))
        self.rnn = CELLS[cell](embed or len(alphabet), hidden, layers, rng=rng)
        self.head = Linear(hidden, len(alphabet), rng=rng)
        self.parameters = join(embedding=self.embedding.parameters, rnn=self.rnn.parameters, head=self.head.parameters)

    def learn(self, inputs: Array, targets: Array, state: Any = None) -> tuple[float, dict[str, Array], Any]:
        """Forward and backward through a window (T, B): the loss in nats per character, its gradients, the state."""
        x, embedding_tape = self.embedding.forward(inputs)
        y, state, rnn_tape = self.rnn.forward(x, state)
        logits, head_tape = self.head.forward(y)
        loss, dlogits = softmax_cross_entropy(logits, targets)

        head = self.head.backward(head_tape, dlogits)
        rnn = self.rnn.backward(rnn_tape, head.x, dx=bool(self.embedding.parameters))
        embedding = self.embedding.backward(embedding_tape, rnn.x)
        return loss, join(embedding=embedding.parameters, rnn=rnn.parameters, head=head.parameters), state


# --------------------------------------------------------------------------------------------------------- training


def train(
    model: CharLM,
    symbols: Array,
    optimizer: Optimizer,
    *,
    batch: int,
    length: int,
    clip: float,
    seconds: float = math.inf,
    steps: float = math.inf,
    quiet: bool = False,
) -> Array:
    """Truncated backpropagation through time until `seconds` or `steps` are over: the loss of each step in bits.

    The state is carried from window to window, its gradient is not. The learning rate falls to a tenth on the way.
    """
    rate, losses, state, started = optimizer.learning_rate, [], None, time.perf_counter()
    with tqdm(total=1.0, disable=quiet, bar_format="{percentage:3.0f}% {bar} {elapsed}<{remaining}  {desc}") as bar:
        for inputs, targets, top in itertools.chain.from_iterable(
            windows(symbols, batch, length) for _ in itertools.count()
        ):
            elapsed = time.perf_counter() - started
            done = max(elapsed / seconds, len(losses) / steps)
            if done >= 1:
                break
            optimizer.learning_rate = rate * (1 - 0.9 * done)

            loss, gradients, state = model.learn(inputs, targets, None if top else state)
            clip_global_norm(gradients, clip)
            optimizer.step(gradients)

            losses.append(loss / math.log(2))
            recent = np.mean(losses[-50:])
            speed = len(losses) * inputs.size / (time.perf_counter() - started)
            bar.set_description_str(f"{recent:.2f} bits/character, {speed:,.0f} characters/s", refresh=False)
            bar.update(done - bar.n)
        bar.update(1 - bar.n)
    return np.array(losses)


def evaluate(model: CharLM, symbols: Array, batch: int, length: int) -> float:
    """Bits per character on text that the model may not have seen."""
    rnn, state, losses = model.rnn.freeze(), None, []
    for inputs, targets, _ in windows(symbols, batch, length):
        y, state = rnn(model.embedding(inputs), state)
        losses.append(softmax_cross_entropy(model.head(y), targets, unit="bits")[0])
    return float(np.mean(losses))


def sample(model: CharLM, prompt: str, count: int, temperature: float, seed: int = 0) -> str:
    """Go on with a prompt, one character at a time through a stream. At temperature 0 the likeliest one is taken."""
    rng, stream = np.random.default_rng(seed), model.rnn.freeze().stream()
    *seen, symbol = model.alphabet.encode(prompt)
    for earlier in seen:
        stream.step(model.embedding([earlier]))
    written = []
    for _ in range(count):
        h = stream.step(model.embedding([symbol]))
        logits = model.head(h)[0].astype(np.float64)
        logits -= logits.max()  # of the likeliest 0, however small the temperature
        symbol = rng.choice(len(logits), p=softmax(logits / temperature)) if temperature else logits.argmax()
        written.append(symbol)
    return prompt + model.alphabet.decode(written)


def hello(cell: str = "lstm", seed: int = 0) -> tuple[CharLM, int]:
    """Train a tiny model until it answers "hell" with "ello"; return it and the number of steps.

    One "l" is followed by "l" and the other by "o": the letter alone does not tell, the state has to.
    """
    model = CharLM(Alphabet("helo"), cell, hidden=8, layers=1, embed=0, seed=seed)
    optimizer = Adam(model.parameters, 0.03)
    inputs, targets = (model.alphabet.encode(word)[:, None] for word in ("hell", "ello"))
    for _ in range(1000):
        loss, gradients, _ = model.learn(inputs, targets)
        if loss < 0.1:
            break
        optimizer.step(gradients)
    return model, optimizer.steps


# ------------------------------------------------------------------------------------------------------- afterwards


def save(path: Path, model: CharLM) -> None:
    save_arrays(path, {"alphabet": np.array(model.alphabet.characters), **model.parameters})


def load(path: Path, cell: str, hidden: int, layers: int, embed: int) -> CharLM:
    """The model of a file; what its arrays do not say is given again."""
    arrays = load_arrays(path)
    model = CharLM(Alphabet(str(arrays.pop("alphabet"))), cell, hidden, layers, embed, seed=0)
    assign(model.parameters, arrays)
    return model


def compare(model: CharLM, inputs: Array, targets: Array) -> str:
    """How much faster a training step is than on the reference backend, and to how many digits both agree."""

    def timed(repeats: int) -> tuple[float, dict[str, Array]]:
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            loss, gradients, _ = model.learn(inputs, targets)
            times.append(time.perf_counter() - start)
        return min(times), {"loss": np.array(loss), **gradients}

    backend = fr.backends.get().name
    if backend == "reference":
        return "This ran on the reference backend itself: there is nothing to compare with."
    seconds, found = timed(10)
    with fr.use_backend("reference"):
        reference_seconds, expected = timed(2)
    error = max(float(np.abs(found[k] - a).max() / (np.abs(a).max() or 1)) for k, a in expected.items())
    return (
        f"Forward and backward of one window: {1e3 * seconds:.1f} ms on {backend}, {1e3 * reference_seconds:.1f} ms on "
        f"the reference: {reference_seconds / seconds:.1f} times faster. "
        f"Loss and gradients agree to {-math.log10(error or 1e-16):.1f} digits."
    )


def plot(path: Path, losses: Array, held_out: float, characters: int) -> bool:
    """Draw the loss, of each step and smoothed; False if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    read = np.arange(1, len(losses) + 1) * characters / 1e6
    width = min(50, len(losses))
    smooth_read, smooth = (np.convolve(a, np.full(width, 1 / width), "valid") for a in (read, losses))
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(read, losses, color="0.8", label="training, each step")
    axes.plot(smooth_read, smooth, color="C0", label=f"training, mean of {width} steps")
    axes.axhline(held_out, color="C1", linestyle="--", label=f"held out, at the end: {held_out:.2f}")
    axes.set(xlabel="million characters read", ylabel="bits per character")
    axes.legend()
    figure.savefig(path, dpi=120)
    return True


# -------------------------------------------------------------------------------------------------------------- main


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--text", type=Path, help="the file to learn from; the source of Python's standard library if not given")
    add("--cell", choices=CELLS, default="lstm")
    add("--hidden", type=int, default=256, help="hidden size")
    add("--layers", type=int, default=1)
    add("--embed", type=int, default=32, metavar="N", help="size of learnt character vectors; 0 for one-hot characters")
    add("--batch", type=int, default=16, help="columns of text read together")
    add("--length", type=int, default=64, help="characters of a window: how far gradients go back")
    add("--seconds", type=float, default=50, help="how long to train")
    add("--steps", type=int, help="train so many steps and not for a time; the result then depends on the seed alone")
    add("--optimizer", choices=OPTIMIZERS, default="adam")
    add("--rate", type=float, default=8e-3, help="learning rate at the start")
    add("--clip", type=float, default=1.0, help="largest norm of the gradients")
    add("--prompt", default="def ", help="what the text written at the end starts with")
    add("--count", type=int, default=600, help="characters to write")
    add("--temperature", type=float, default=0.6, help="below 1 is more careful than the text, 0 takes the likeliest")
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=Path("out"), help="folder for the weights and the loss curve")
    options = parser.parse_args(arguments)
    if not options.prompt:
        parser.error("--prompt: expected at least one character")
    if options.steps is not None and options.steps < 1:
        parser.error(f"--steps: expected at least 1, got {options.steps}")
    if not options.seconds > 0:
        parser.error(f"--seconds: expected more than 0, got {options.seconds}")
    for name in ("rate", "clip", "temperature"):
        if not math.isfinite(getattr(options, name)):
            parser.error(f"--{name}: expected a number, got {getattr(options, name)}")
    if not options.clip > 0:
        parser.error(f"--clip: expected more than 0, got {options.clip}")
    ones, zeros = ("hidden", "layers", "batch", "length", "count"), ("embed", "rate", "temperature", "seed")
    for name in (*ones, *zeros):
        if getattr(options, name) < (least := int(name in ones)):
            parser.error(f"--{name}: expected at least {least}, got {getattr(options, name)}")
    if options.out.exists() and not options.out.is_dir():
        parser.error(f"--out: expected a folder, got {options.out}")
    if options.text and not options.text.is_file():
        parser.error(f"--text: expected a file, got {options.text}")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a sample may hold what a terminal cannot show

    model, steps = hello(options.cell, options.seed)
    print(
        f'The letters h, e, l, o: after {steps} steps the model goes on from "h" with "{sample(model, "h", 4, 0)}".\n'
    )

    text = read_text(options.text)
    alphabet = Alphabet.of(text)
    symbols = alphabet.encode(text)
    learnt, held_out = np.split(symbols, [len(symbols) * 19 // 20])
    least = options.batch * options.length + 1
    if len(held_out) < least:
        raise SystemExit(
            f"--text: expected at least {20 * least:,} characters, of which a twentieth is held out, for --batch "
            f"{options.batch} columns and --length {options.length}, got {len(symbols):,}"
        )
    shape = options.cell, options.hidden, options.layers, options.embed
    model = CharLM(alphabet, *shape, options.seed)
    count = sum(a.size for a in model.parameters.values())
    print(f"{len(learnt):,} characters of text, {len(alphabet)} different ones; {model.rnn}, {count:,} parameters.")

    losses = train(
        model,
        learnt,
        OPTIMIZERS[options.optimizer](model.parameters, options.rate),
        batch=options.batch,
        length=options.length,
        clip=options.clip,
        seconds=math.inf if options.steps else options.seconds,
        steps=options.steps or math.inf,
    )
    bits = evaluate(model, held_out, options.batch, options.length)
    print(f"From {losses[0]:.2f} to {losses[-50:].mean():.2f} bits per character; on held-out text {bits:.2f}.\n")

    written = sample(model, options.prompt, options.count, options.temperature, options.seed)
    print(written, "\n", sep="\n")

    save(options.out / "char_lm.npz", model)
    again = load(options.out / "char_lm.npz", *shape)
    assert sample(again, options.prompt, options.count, options.temperature, options.seed) == written
    print(f"{options.out / 'char_lm.npz'}: the weights; loaded again, they write the same text.")
    if plot(options.out / "char_lm.png", losses, bits, options.batch * options.length):
        print(f"{options.out / 'char_lm.png'}: the loss curve.")
    inputs, targets, _ = next(windows(learnt, options.batch, options.length))
    print(compare(model, inputs, targets))


if __name__ == "__main__":
    main()
