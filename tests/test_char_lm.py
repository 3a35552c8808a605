"""examples/char_lm.py on a tiny text: it learns, what it saves comes back, and the same seed writes the same text."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import fusedrnn as fr
from fusedrnn.train import SGD, Adam, softmax_cross_entropy

TEXT = "the quick brown fox jumps over the lazy dog.\n" * 60
OTHER = "\N{REPLACEMENT CHARACTER}"


@pytest.fixture(scope="module")
def char_lm() -> ModuleType:
    pytest.importorskip("tqdm")
    path = Path(__file__).parents[1] / "examples" / "char_lm.py"
    spec = importlib.util.spec_from_file_location("char_lm", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def model(char_lm: ModuleType):  # type: ignore[no-untyped-def]
    return char_lm.CharLM(char_lm.Alphabet.of(TEXT), "lstm", hidden=24, layers=2, embed=8, seed=1)


def taught(char_lm: ModuleType, model, steps: int = 120):  # type: ignore[no-untyped-def]
    symbols, optimizer = model.alphabet.encode(TEXT), Adam(model.parameters, 0.02)
    return char_lm.train(model, symbols, optimizer, batch=8, length=16, clip=1.0, steps=steps, quiet=True)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_hello_is_learnt(char_lm: ModuleType, cell: str, seed: int) -> None:
    model, steps = char_lm.hello(cell, seed)
    assert steps < 500
    assert char_lm.sample(model, "h", 4, temperature=0) == "hello"
    logits = model.head(model.rnn(model.embedding(model.alphabet.encode("hell")[:, None]))[0])
    assert model.alphabet.decode(logits[:, 0].argmax(axis=1)) == "ello"


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("embed", [0, 8])
def test_the_loss_falls(char_lm: ModuleType, cell: str, embed: int) -> None:
    model = char_lm.CharLM(char_lm.Alphabet.of(TEXT), cell, hidden=24, layers=1, embed=embed, seed=0)
    losses = taught(char_lm, model)
    assert losses.shape == (120,)
    assert losses[0] > 4
    assert losses[-10:].mean() < 1
    assert char_lm.evaluate(model, model.alphabet.encode(TEXT), 4, 32) < 1


def test_training_depends_on_the_seed_alone(char_lm: ModuleType) -> None:
    make = lambda seed: char_lm.CharLM(char_lm.Alphabet.of(TEXT), "gru", 8, 1, 0, seed)  # noqa: E731
    a, b, c = (taught(char_lm, make(seed), steps=5) for seed in (0, 0, 1))
    assert (a == b).all()
    assert (a != c).any()


def test_the_state_goes_on_and_the_rate_falls(char_lm: ModuleType, model, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    learn, optimizer, calls = model.learn, Adam(model.parameters, 0.02), []

    def spy(inputs, targets, state):  # type: ignore[no-untyped-def]
        answer = learn(inputs, targets, state)
        calls.append((state, answer[2], optimizer.learning_rate))
        return answer

    monkeypatch.setattr(model, "learn", spy)
    symbols = model.alphabet.encode(TEXT[:22])  # two windows, then the top again
    char_lm.train(model, symbols, optimizer, batch=3, length=3, clip=1.0, steps=4, quiet=True)
    (first, carried, _), (second, *_), (third, carried_too, _), (fourth, *_) = calls
    assert first is third is None
    assert second is carried
    assert fourth is carried_too
    assert [rate for *_, rate in calls] == pytest.approx([0.02, 0.0155, 0.011, 0.0065])


def test_gradients_are_clipped(char_lm: ModuleType, model) -> None:  # type: ignore[no-untyped-def]
    before = {key: a.copy() for key, a in model.parameters.items()}
    symbols = model.alphabet.encode(TEXT)
    char_lm.train(model, symbols, SGD(model.parameters, 1.0), batch=8, length=16, clip=0.01, steps=1, quiet=True)
    norm = math.hypot(*(np.linalg.norm(a - before[key]) for key, a in model.parameters.items()))
    assert norm == pytest.approx(0.01, rel=1e-3)


def test_evaluation_is_in_bits_and_carries_the_state(char_lm: ModuleType, model) -> None:  # type: ignore[no-untyped-def]
    symbols = model.alphabet.encode(TEXT)[:65]
    y, _ = model.rnn(model.embedding(symbols[:-1, None]))
    nats, _ = softmax_cross_entropy(model.head(y), symbols[1:, None])
    for length in (8, 64):
        assert char_lm.evaluate(model, symbols, 1, length) == pytest.approx(nats / math.log(2), rel=1e-5)


def test_gradients_are_those_of_the_loss(char_lm: ModuleType, model) -> None:  # type: ignore[no-untyped-def]
    """Along the gradient the loss rises by its squared norm: the parts of the model are put together rightly."""
    inputs, targets, _ = next(char_lm.windows(model.alphabet.encode(TEXT), 3, 5))
    _, gradients, _ = model.learn(inputs, targets)
    assert gradients.keys() == model.parameters.keys()
    before = {key: a.copy() for key, a in model.parameters.items()}
    for key, g in gradients.items():
        norm = float(np.linalg.norm(g))
        losses = []
        for step in (-1, 1):
            model.parameters[key][...] = before[key] + np.float32(step * 0.02 / norm) * g
            losses.append(model.learn(inputs, targets)[0])
        model.parameters[key][...] = before[key]
        assert (losses[1] - losses[0]) / 0.04 == pytest.approx(norm, rel=0.02), key


@pytest.mark.filterwarnings("ignore:overflow")
def test_the_smallest_temperature_takes_the_likeliest(char_lm: ModuleType, model) -> None:  # type: ignore[no-untyped-def]
    assert char_lm.sample(model, "the", 9, 1e-320) == char_lm.sample(model, "the", 9, 0)


def test_sampling_depends_on_the_seed_alone(char_lm: ModuleType, model) -> None:  # type: ignore[no-untyped-def]
    a, b, c = (char_lm.sample(model, "the ", 60, temperature=1.0, seed=seed) for seed in (3, 3, 4))
    assert a == b
    assert a != c
    assert a.startswith("the ")
    assert len(a) == 64
    assert char_lm.sample(model, "the ", 9, 0, seed=3) == char_lm.sample(model, "the ", 9, 0, seed=4)
    assert char_lm.sample(model, "the ", 9, temperature=1e-4) == char_lm.sample(model, "the ", 9, temperature=0)


def test_a_stream_writes_what_the_sequence_says(char_lm: ModuleType, model) -> None:  # type: ignore[no-untyped-def]
    taught(char_lm, model)
    written = char_lm.sample(model, "the ", 20, temperature=0)
    y, _ = model.rnn(model.embedding(model.alphabet.encode(written)[:, None]))
    likeliest = model.head(y)[:, 0].argmax(axis=1)
    assert model.alphabet.decode(likeliest[3:-1]) == written[4:]


def test_weights_come_back(char_lm: ModuleType, model, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    char_lm.save(tmp_path / "a.npz", model)
    again = char_lm.load(tmp_path / "a.npz", "lstm", 24, 2, 8)
    assert again.alphabet.characters == model.alphabet.characters
    for key, a in model.parameters.items():
        np.testing.assert_array_equal(again.parameters[key], a, strict=True)
    assert char_lm.sample(again, "fox", 40, 1.0) == char_lm.sample(model, "fox", 40, 1.0)
    with pytest.raises(ValueError, match=r"arrays\['rnn.weight_ih_l0'\]: expected shape \(100, 8\), got \(96, 8\)"):
        char_lm.load(tmp_path / "a.npz", "lstm", 25, 2, 8)


def test_alphabet(char_lm: ModuleType) -> None:
    alphabet = char_lm.Alphabet.of("aaabbc", size=3)
    assert alphabet.characters == f"ab{OTHER}"
    assert alphabet.decode(alphabet.encode("abcé\N{PILE OF POO}")) == f"ab{OTHER * 3}"
    text = "".join(chr(i) for i in range(40))
    alphabet = char_lm.Alphabet.of(text)
    assert alphabet.decode(alphabet.encode(text)) == text


def test_windows(char_lm: ModuleType) -> None:
    found = list(char_lm.windows(np.arange(22), batch=3, length=3))
    assert [top for *_, top in found] == [True, False]
    assert found[0][0].tolist() == [[0, 7, 14], [1, 8, 15], [2, 9, 16]]
    assert found[1][0].tolist() == [[3, 10, 17], [4, 11, 18], [5, 12, 19]]
    for inputs, targets, _ in found:
        assert (targets == inputs + 1).all()
    with pytest.raises(ValueError, match="21 characters are too few for 3 columns of 7"):
        next(char_lm.windows(np.arange(21), batch=3, length=7))


def test_the_default_text_is_there_and_always_the_same(char_lm: ModuleType) -> None:
    text = char_lm.read_text(None)
    assert len(text) > 1_000_000
    assert "def " in text
    assert char_lm.read_text(None) == text


def test_comparison_with_the_reference(char_lm: ModuleType, model) -> None:  # type: ignore[no-untyped-def]
    window = next(char_lm.windows(model.alphabet.encode(TEXT), 4, 8))[:2]
    with fr.use_backend("reference"):
        assert "itself" in char_lm.compare(model, *window)
    line = char_lm.compare(model, *window)
    if fr.backends.get().name != "reference":
        assert float(line.split("agree to ")[1].split()[0]) > 4


def test_main(char_lm: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "text").write_text(TEXT * 2, encoding="utf-8")
    options = f"--text {tmp_path}/text --steps 3 --hidden 8 --batch 4 --length 10 --count 50 --out {tmp_path}/out"
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as if matplotlib were not installed
    char_lm.main([*options.split(), "--cell", "gru", "--optimizer", "rmsprop", "--prompt", "dog"])
    out = capsys.readouterr().out
    assert '"hello"' in out
    assert "bits per character; on held-out text" in out
    assert "\ndog" in out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["char_lm.npz"]


def test_main_hands_its_options_on(char_lm: ModuleType, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "text").write_text(TEXT * 2, encoding="utf-8")
    calls = []
    monkeypatch.setattr(char_lm, "train", lambda *given, **named: calls.append((*given, named)) or np.ones(3))
    monkeypatch.setattr(char_lm, "evaluate", lambda *given: calls.append(given) or 1.0)
    options = "--hidden 8 --layers 2 --embed 3 --batch 4 --length 10 --rate 0.5 --clip 2 --seed 3 --count 9"
    for end, seconds, steps in (("--steps 7", math.inf, 7), ("--seconds 9", 9, math.inf)):
        char_lm.main([*options.split(), *end.split(), "--text", str(tmp_path / "text"), "--out", str(tmp_path)])
        (model, learnt, optimizer, named), (*_, held_out, batch, length) = calls
        assert named == {"batch": 4, "length": 10, "clip": 2, "seconds": seconds, "steps": steps}
        assert (batch, length, optimizer.learning_rate) == (4, 10, 0.5)
        assert model.alphabet.decode(np.concatenate([learnt, held_out])) == TEXT * 2
        assert len(held_out) == len(TEXT) // 10
        assert repr(model.rnn) == "LSTM(3, 8, num_layers=2)"
        same = char_lm.CharLM(model.alphabet, "lstm", 8, 2, 3, seed=3).parameters
        assert all((a == same[key]).all() for key, a in model.parameters.items())
        calls.clear()


def test_the_loss_curve(char_lm: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert char_lm.plot(tmp_path / "a.png", np.linspace(5, 2, 80), 2.5, 512)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert char_lm.plot(tmp_path / "b.png", np.array([5.0]), 2.5, 512)


def test_no_prompt_is_refused(char_lm: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        char_lm.main(["--prompt", ""])
    assert "--prompt: expected at least one character" in capsys.readouterr().err


def test_a_text_too_short_is_refused_before_training(char_lm: ModuleType, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text(TEXT, encoding="utf-8")
    with pytest.raises(SystemExit, match=r"--text: expected at least 20,500 characters, .* got 2,700"):
        char_lm.main(["--text", str(text), "--out", str(tmp_path)])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *((f"--{name}", "0") for name in ("seconds", "steps", "hidden", "layers", "batch", "length", "count")),
        ("--embed", "-1"),
        ("--temperature", "-0.1"),
        ("--temperature", "nan"),
        ("--rate", "-1"),
        ("--rate", "inf"),
        ("--clip", "0"),
        ("--clip", "nan"),
        ("--seed", "-1"),
        ("--out", __file__),
        ("--text", "no such file"),
    ],
)
def test_options_out_of_range(char_lm: ModuleType, option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        char_lm.parse([option, value])
    assert f"{option}: expected" in capsys.readouterr().err


def test_a_gradient_of_zeros_agrees(char_lm: ModuleType) -> None:
    """That of W_hh, in the first window of one character: there is no state yet."""
    model = char_lm.CharLM(char_lm.Alphabet("ab"), "gru", 4, 1, 0, seed=0)
    window = np.array([[0, 1]])
    with np.errstate(all="raise"):
        line = char_lm.compare(model, window, window)
    assert ("itself" if fr.backends.get().name == "reference" else "agree to") in line
