"""The steps of a fit and its validations, on one process or on several with the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pullback.encoders import Encoder
from pullback.errors import NumericsError, StageError
from pullback.fitting.checkpoint import State
from pullback.fitting.draws import generator, place_in_order
from pullback.fitting.examples import Example, Examples
from pullback.fitting.objective import Picture, judge, judge_whole, sample
from pullback.fitting.recipe import Recipe
from pullback.fitting.standing import Losses, Standing
from pullback.fitting.workers import Workers

_DECAY = (0.9, 0.999)  # Adam's usual settings
_EPS = 1e-8
_LOSSES = 3  # numbers of a row before the gradient: loss, floor, zero


@dataclass(frozen=True)
class Fit:
    """What stays the same in all steps. channels: of the levels that have correctors."""

    encoder: Encoder
    channels: list[int]
    recipe: Recipe
    examples: Examples
    workers: Workers

    def states(self, state: State, told: Callable[[Standing], None]) -> Iterator[State]:
        """The state at the start, where this is one, and after every step that is still to be done."""
        held = None
        if not state.history:
            state, held = self.validated(state)
            yield state
        told(Standing(state.step, self.recipe.steps, None, held, due=held is not None))
        while state.step < self.recipe.steps:
            state = self.stepped(state)
            since = state.step - state.history[-1]["step"]
            fitted, held = Losses(*(state.running / since).tolist()), None
            due = state.step % self.recipe.interval == 0 or state.step == self.recipe.steps
            if due:
                state, held = self.validated(state, fitted)
            yield state
            told(Standing(state.step, self.recipe.steps, fitted, held, due))

    def stepped(self, state: State) -> State:
        """One step of Adam on the mean gradient of a batch, summed in the order of its pictures in float64."""
        recipe, examples, width = self.recipe, self.examples.fitted, len(state.parameters)

        def row(index: int) -> Tensor:
            place = place_in_order(state.step * recipe.batch + index, len(examples), recipe.seed)
            source = generator("channels", recipe.seed, state.step, index)

            def work(picture: Picture) -> Tensor:
                losses, gradient = sample(picture, state.parameters, self.channels, recipe, source)
                return torch.cat([_numbers(losses), gradient])

            return self._at(examples[place], work)

        losses, gradient = _mean(self.workers.rows(recipe.batch, _LOSSES + width, row)).split([_LOSSES, width])
        step = state.step + 1
        first = _DECAY[0] * state.first + (1 - _DECAY[0]) * gradient
        second = _DECAY[1] * state.second + (1 - _DECAY[1]) * gradient.square()
        scale = (second / (1 - _DECAY[1] ** step)).sqrt() + _EPS
        parameters = state.parameters - recipe.rate_at(state.step) * (first / (1 - _DECAY[0] ** step)) / scale
        running = state.running + losses
        return replace(state, step=step, parameters=parameters, first=first, second=second, running=running)

    def validated(self, state: State, fitted: Losses | None = None) -> tuple[State, Losses | None]:
        """The state with a row of history and nothing running, and the losses at the pictures held back."""

        def row(index: int) -> Tensor:
            source = generator("held back", self.recipe.seed, index)  # the same channels at every validation

            def work(picture: Picture) -> Tensor:
                return _numbers(judge(picture, state.parameters, self.channels, self.recipe, source))

            return self._at(self.examples.held[index], work)

        count = len(self.examples.held)
        held = Losses(*_mean(self.workers.rows(count, _LOSSES, row)).tolist()) if count else None
        named = {"fitted": fitted, "held back": held}
        entry = {"step": state.step, **{name: losses.rounded() for name, losses in named.items() if losses}}
        return replace(state, history=(*state.history, entry), running=torch.zeros_like(state.running)), held

    def outcome(self, state: State) -> dict[str, Any]:
        """For the card: the history; in additive mode the loss of whole pictures too, at those held back, and the gap to it."""
        history = list(state.history)
        if self.recipe.mode != "additive" or not self.examples.held:
            return {"history": history}

        def row(index: int) -> Tensor:
            def work(picture: Picture) -> Tensor:
                own = judge_whole(picture, state.parameters, self.channels, self.recipe)
                return torch.tensor([own], dtype=torch.float64, device="cpu")

            return self._at(self.examples.held[index], work)

        last = history[-1]["held back"]
        whole = float(_mean(self.workers.rows(len(self.examples.held), 1, row)))
        found = Losses(whole, last["floor"], last["zero"]).rounded()
        return {"history": history, "held back, whole": found, "gap": round(last["loss"] - whole, 6)}

    def _at(self, example: Example, work: Callable[[Picture], Tensor]) -> Tensor:
        """What `work` finds at a picture, opened for it; errors name the picture."""
        try:
            picture = Picture.open(self.encoder, example.read(self.encoder), self.recipe.drawn)
        except StageError as error:
            raise StageError(f"{example.name} cannot be fitted on, leave it out: {error}") from error
        try:
            found = work(picture)
        finally:
            picture.close()
        if not bool(torch.isfinite(found).all()):
            raise NumericsError(
                f"the loss at {example.name} is not finite; give a lower rate, or leave this picture out"
            )
        return found


def _numbers(losses: Losses) -> Tensor:
    return torch.tensor([losses.loss, losses.floor, losses.zero], dtype=torch.float64, device="cpu")


def _mean(rows: Tensor) -> Tensor:
    """The mean of rows (N, W), added one after the other, so that the bits depend on nothing but the rows."""
    total = torch.zeros_like(rows[0])
    for row in rows:
        total = total + row
    return total / len(rows)
