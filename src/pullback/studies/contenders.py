"""The methods that are compared, by name, each made for an encoder and a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pullback.encoders import Encoder
from pullback.errors import OptionError
from pullback.inversion import Correctors, Inverter
from pullback.inversion.inverter import ITERATIVE, MODES
from pullback.inversion.wiener import RIDGE
from pullback.studies.mahendran import mahendran
from pullback.studies.options import METHODS
from pullback.studies.sessions import Opener
from pullback.studies.upconvnet import Decoder, upconvnet

_TITLES = {
    "vjp": "raw VJP (vanilla)",
    "wiener": "Wiener",
    "blind": "blind",
    "blind-mean": "blind, from the mean colour",
    "decoder": "decoder",
}
MEMORY = "1GB"  # of cotangents held, so that a free machine and a busy one give the same chunks


@dataclass(frozen=True)
class Budget:
    """steps or seconds of each iterative inverse; the other is None.

    Wiener and Mahendran & Vedaldi draw a picture and its null within them, the blind inverse its picture alone: its null,
    searched once for a network and a number of steps and then kept, takes as many steps again.
    """

    steps: int | None
    seconds: float | None

    def at(self, steps: float | None) -> Budget:
        """Where seconds were given, the number of steps that another picture took in them, if it took any."""
        return self if steps is None or self.seconds is None else Budget(int(steps), None)


@dataclass(frozen=True)
class Contender:
    """One line of the tables. learned: made for this encoder's own features, so a random encoder's mean nothing to it."""

    key: str
    title: str
    start: Callable[[Encoder, Budget], Opener]
    about: str  # what else decides its pictures
    learned: bool = False


def contenders(
    methods: Sequence[str],
    *,
    correctors: Sequence[Correctors] = (),
    decoders: Mapping[int, Decoder] | None = None,
    training: Mapping[str, object] | None = None,
    seed: int = 0,
) -> list[Contender]:
    """One contender for each method of METHODS, and for a cascade one more for each set of fitted correctors.

    decoders, training: of the UpConvNet, by stage, and how they were trained. Raises OptionError for an unknown method.
    """
    found: list[Contender] = []
    for method in methods:
        if method not in METHODS:
            raise OptionError(f"unknown method {method!r}; choose among {', '.join(METHODS)}")
        if method in MODES:
            found.append(_cascade(method, None, "unfitted", seed))
            found += [
                _cascade(method, c, "fitted" if len(correctors) == 1 else f"fitted {n}", seed)
                for n, c in enumerate(correctors, 1)
            ]
        elif method == "mahendran":
            found.append(Contender(method, "Mahendran & Vedaldi", _mahendran(seed), ""))
        elif method == "upconvnet":
            found.append(_upconvnet(dict(decoders or {}), dict(training or {}), seed))
        else:
            about = f"ridge {RIDGE:g}" if method == "wiener" else ""
            found.append(Contender(method, _TITLES[method], _inverter(method, seed), about))
    return found


def _cascade(mode: str, correctors: Correctors | None, said: str, seed: int) -> Contender:
    def start(encoder: Encoder, budget: Budget) -> Opener:
        return Inverter(encoder, "cascade", mode, correctors=correctors, memory=MEMORY, seed=seed)

    key = f"{mode}-{said.replace(' ', '-')}"
    about = "" if correctors is None else correctors.digest
    return Contender(key, f"cascade {mode}, {said}", start, about, learned=correctors is not None)


def _inverter(key: str, seed: int) -> Callable[[Encoder, Budget], Opener]:
    method, _, mean = key.partition("-")
    begun = "mean" if mean else "taught"

    def start(encoder: Encoder, budget: Budget) -> Opener:
        steps, seconds = (budget.steps, budget.seconds) if method in ITERATIVE else (None, None)
        return Inverter(encoder, method, start=begun, steps=steps, seconds=seconds, memory=MEMORY, seed=seed)

    return start


def _mahendran(seed: int) -> Callable[[Encoder, Budget], Opener]:
    def start(encoder: Encoder, budget: Budget) -> Opener:
        return mahendran(encoder, steps=budget.steps, seconds=budget.seconds, seed=seed)

    return start


def _upconvnet(decoders: dict[int, Decoder], training: dict[str, object], seed: int) -> Contender:
    def start(encoder: Encoder, budget: Budget) -> Opener:
        return upconvnet(encoder, decoders, about=training, seed=seed)

    return Contender("upconvnet", "UpConvNet", start, repr(training), learned=True)
