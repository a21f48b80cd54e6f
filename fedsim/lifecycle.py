"""A simulation tied to its run folder: started, resumed, extended, interrupted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fedsim import third_party
from fedsim.errors import BudgetError, ConfigError, ResumeError
from fedsim.network import Network
from fedsim.protection.ledger import LEDGER, Ledger
from fedsim.records import Params
from fedsim.results import RunFolder, command_line, environment
from fedsim.rounds import RoundLoop, RoundReport
from fedsim.simulation import Simulation
from fedsim.strategy import State

log = logging.getLogger(__name__)

_MECHANISM = "privacy/"
"""What the names of a mechanism's state begin with, beside the strategy's in a checkpoint."""
_PACE = "pace/"
"""The same of the late replies that are still to come."""
_CLIENTS = "clients/"
"""What the names of what virtual clients remember begin with there."""
_CLOCK = "clock/seconds"
"""The name of the virtual clock's time there; absent where it cannot be told."""
_CARRIED = "links/bytes"
"""The name of what each link has carried; absent where it is not kept."""


@dataclass(kw_only=True)
class Run:
    """A simulation tied to its run folder: fresh, or resumed from its latest checkpoint.

    Attributes:
        simulation: What to run.
        folder: Where.
        stop: Asked after each round; true ends the run there, with a checkpoint.
        extend: Go on until this round, which is later than planned; None to keep to the plan.
    """

    simulation: Simulation
    folder: RunFolder
    stop: Callable[[], bool] = lambda: False
    extend: int | None = None

    def start(self) -> Iterator[RoundReport]:
        """Run from the beginning, yielding a report after each round."""
        with self.folder.lock():
            yield from self._start()

    def resume(self) -> Iterator[RoundReport]:
        """Go on from the latest checkpoint; from the beginning if there is none.

        Raises:
            ResumeError: Something in the run folder is not what the run wrote.
            ConfigError: `extend` is not later than planned.
        """
        with self.folder.lock():
            saved = self.folder.load_checkpoint()
            if saved is None:
                self._plan(self.simulation.last_round)
                self.ledger.load(None)  # what was released stays so, whatever has been removed
                yield from self._start()
                return
            self._plan(max(self.simulation.last_round, saved.last_round))
            loop = self._loop()
            loop.clock.seconds = _time(saved.state.pop(_CLOCK, None))
            if loop.meter is not None:
                loop.meter.network.restore(_column(saved.state.pop(_CARRIED, None)))
            mechanism, state = _split(saved.state, _MECHANISM)
            late, state = _split(state, _PACE)
            memory, state = _split(state, _CLIENTS)
            third_party.restore(self.simulation.strategy, state)
            self.simulation.protection.load_state_dict(mechanism)
            self._remind(memory)
            if loop.pace is not None:
                loop.pace.load_state_dict(late)
            self.ledger.load(saved.covers.get(LEDGER))
            yield from self._rounds(loop, self._model(saved.params), saved.server_round)

    def _start(self) -> Iterator[RoundReport]:
        simulation = self.simulation
        loop = self._loop()  # everything is built, and checked, before anything is written
        self.folder.write_start(
            environment=environment(simulation.device, simulation.settings.seed, self._command()),
            partition=simulation.describe_partition(),
            privacy=simulation.protection.planned().to_json(),
        )
        params = simulation.runtime.initial_params()
        self._save(loop, 0, params)  # from here on, what was written is covered
        yield from self._rounds(loop, params, done=0)

    @cached_property
    def ledger(self) -> Ledger:
        """What the run has released."""
        return Ledger(self.folder.path / LEDGER, self.simulation.protection)

    def _loop(self) -> RoundLoop:
        loop = self.simulation.loop
        if self.simulation.smoke is None:
            loop.charge = self.ledger.charge
        return loop

    def _command(self) -> list[str]:
        """Return how the run was started.

        Where Flower has started this process, that is not its command line, which moreover holds
        the token by which the SuperLink knows it.
        """
        if self.simulation.flower_grid is None:
            return command_line()
        config = self.simulation.config
        return ["fedsim", "deploy", f"scenario={config.scenario}", *config.overrides]

    def _remind(self, memory: State) -> None:
        """Have clients remember what they did, where that is in the checkpoint."""
        grid, compressor = self.simulation.grid, self.simulation.runtime.compressor
        grid.load_state_dict(memory)
        if compressor is not None and compressor.codec.remembers and not grid.keeps_memory:
            log.warning(
                "clients' processes hold what compression has left out of their updates; those of "
                "the run before have ended, and clients begin again with nothing left out"
            )

    def _plan(self, last_round: int) -> None:
        """Settle how far the run goes, before the loop is built."""
        if self.extend is not None and self.extend < last_round:
            raise ConfigError(
                f"--extend rounds={self.extend}: the run goes to round {last_round} already; only "
                f"a larger number is allowed, e.g. --extend rounds={2 * last_round}"
            )
        self.simulation.last_round = self.extend or last_round

    def _model(self, saved: Params) -> Params:
        """Return a saved model in the order of this run's, on its device.

        The order counts: some strategies add up norms over all arrays.
        """
        runtime = self.simulation.runtime
        shapes = {name: tensor.shape for name, tensor in runtime.initial_params().items()}
        if shapes != {name: tensor.shape for name, tensor in saved.items()}:
            raise ResumeError(
                f"the checkpoint in {self.folder.path} holds another model than the scenario "
                "builds; was the code changed?"
            )
        params = runtime.received(saved)
        return {name: params[name] for name in shapes}

    def _rounds(self, loop: RoundLoop, params: Params, done: int) -> Iterator[RoundReport]:
        if done >= loop.last_round and self.folder.ended:
            return
        self.folder.reopen()
        every, last = self.simulation.settings.checkpoint.every, done
        model, saved, spent = params, done, None
        try:
            for model, report in loop.run(params, done):
                for detail in report.details:
                    log.warning("round %d: %s", report.server_round, detail)
                self.folder.append(report)
                last = report.server_round
                stopping = self.stop()
                # Round 0 was saved before it was evaluated; a resumed run does that again.
                if last and (last % every == 0 or last == loop.last_round or stopping):
                    self._save(loop, last, model)
                    saved = last
                yield report
                if stopping:
                    break
        except BudgetError as error:  # the model so far is good
            spent = error
            if last > saved:
                self._save(loop, last, model)
        status = "finished" if last >= loop.last_round else "interrupted"
        summary: dict[str, Any] = {
            "status": "budget" if spent else status,
            "server_round": last,
            "last_round": loop.last_round,
            "smoke": self.simulation.smoke is not None,
            "privacy": self.simulation.protection.statement().to_json(),
        }
        self.folder.write_end(model, summary)
        found = self.simulation.findings(model)
        if found is not None:
            self.folder.write_findings(found.to_json())
        if loop.meter is not None:
            self._write_graph(loop.meter.network)
        if spent:
            raise spent

    def _write_graph(self, network: Network) -> None:
        """Write who is linked to whom, and what each link has carried."""
        graph = network.describe()
        if graph is not None:
            self.folder.write_graph(graph)
        elif network.kind != "star":
            log.warning("no graph.json: %s", network.why_not)

    def _save(self, loop: RoundLoop, server_round: int, params: Params) -> None:
        simulation = self.simulation
        self.folder.save_checkpoint(
            server_round,
            simulation.last_round,
            params,
            {
                **third_party.state_of(simulation.strategy),
                **_named(_MECHANISM, simulation.protection.state_dict()),
                **_named(_CLIENTS, simulation.grid.state_dict()),
                **_named(_PACE, {} if loop.pace is None else loop.pace.state_dict()),
                **_time_of(loop),
                **_carried(loop),
            },
            simulation.settings.checkpoint.keep,
            self.ledger.chain,
        )


def _time_of(loop: RoundLoop) -> State:
    """Return the clock's time as it is kept; JSON gives back every bit of a float."""
    seconds = loop.clock.seconds
    return {} if loop.meter is None or seconds is None else {_CLOCK: seconds}


def _carried(loop: RoundLoop) -> State:
    """Return what each link has carried, as it is kept."""
    bytes_M = None if loop.meter is None else loop.meter.network.bytes_M
    return {} if bytes_M is None else {_CARRIED: bytes_M.copy()}


def _column(kept: object) -> np.ndarray | None:
    return None if kept is None else np.asarray(kept, np.float64)


def _time(kept: object) -> float | None:
    return float(kept) if isinstance(kept, (int, float)) else None


def _named(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def _split(state: State, prefix: str) -> tuple[State, State]:
    """Return (what `_named` has named so, the rest)."""
    own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return own, {k: v for k, v in state.items() if not k.startswith(prefix)}
