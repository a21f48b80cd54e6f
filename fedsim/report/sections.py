"""The sections of a report, top to bottom; each copes with what its files lack."""

from __future__ import annotations

import base64

import numpy as np

from fedsim.report import page
from fedsim.report.curves import cost_curves, diagnostic_curve, loss_curves, metric_curves
from fedsim.report.decomposition import TERMS, decomposition_curves, decomposition_terms
from fedsim.report.fairness import fairness, fairness_histogram
from fedsim.report.holdings import holdings_image
from fedsim.report.measures import (
    COST_NOTES,
    COST_WORDS,
    MEASURED_BY,
    Headline,
    best_round,
    is_fraction,
    is_shown,
    show,
    show_seconds,
    word,
)
from fedsim.report.page import Html
from fedsim.report.participation import MOST_CLIENTS, participation
from fedsim.report.round_columns import GROUPS, PerClient, drawable
from fedsim.report.run_folder import RunData

LAST_ROUNDS = 10
"""Rows of the table of the latest evaluated rounds."""

_GROUP_WORDS = {
    "central": "test",
    "clients": "clients'",
    "train": "training",
    "diagnostics": "diagnostic",
}
MOST_DIAGNOSTICS = 8
MOST_ROWS = 300
"""Clients that are listed one by one."""

FOOTPRINT = {
    "bytes-down": ("received", 1e-6, "MB"),
    "bytes-up": ("sent", 1e-6, "MB"),
    "flops": ("computed", 1e-9, "GFLOP"),
    "seconds": ("busy", 1.0, "simulated s"),
}
"""Column -> (title, factor, unit)."""

_GOOD = ("finished", "done", "completed")


def top(data: RunData, head: Headline | None) -> Html:
    """Return the title, what ran, and the figures a reader looks for first."""
    state = _state(data)
    css = "good" if state in _GOOD else "wait" if not data.summary else "warn"
    title = page.element(
        "div",
        page.element("h1", data.name),
        page.element("span", state, css=f"state {css}"),
        css="title",
    )
    over = page.element("p", "fedsim run report", css="over")
    ran = page.element("p", " · ".join(_what_ran(data)), css="ran")
    return page.element("header", over, title, ran, page.tiles(_tiles(data, head)))


def _state(data: RunData) -> str:
    return str(data.summary.get("status") or "unfinished")[:40]


def _what_ran(data: RunData) -> list[str]:
    words = []
    for group in ("strategy", "data", "model", "engine"):
        target = data.setting(f"{group}._target_")
        if target:
            words.append(f"{group} {str(target).rpartition('.')[2]}")
    if data.setting("data.name"):
        words = [f"data {data.setting('data.name')}" if w.startswith("data ") else w for w in words]
    if data.num_clients is not None:
        words.append(f"{data.num_clients:,} clients")
    words.append(f"{_of(data.rounds.last, data.planned_rounds)} rounds")
    if data.environment.get("device"):
        words.append(f"device {data.environment['device']}")
    words.append(show_seconds(float(data.rounds.seconds_R.sum())))
    return words


def _of(count: int, planned: int | None) -> str:
    return f"{count:,} of {planned:,}" if planned is not None and planned >= count else f"{count:,}"


def _tiles(data: RunData, head: Headline | None) -> list[tuple[str, str, str]]:
    rounds, found = data.rounds, []
    if head is not None:
        where = f"round {head.final_round}, {MEASURED_BY[head.group]}"
        which = "Final" if _state(data) in _GOOD else "Latest"
        found.append((f"{which} {word(head.name)}", show(head.name, head.final), where))
    if head is not None and head.best is not None:
        note = f"round {head.best_round}; chosen on the same samples, hence optimistic"
        found.append((f"Best {word(head.name)}", show(head.name, head.best), note))
    each = rounds.seconds_R[rounds.round_R >= 1]
    pace = f"{show_seconds(float(np.median(each)))} per round (median)" if len(each) else "none yet"
    found.append(("Rounds", _of(rounds.last, data.planned_rounds), pace))
    asked, used = int(rounds.asked_R.sum()), int(rounds.admitted_R.sum())
    if asked:
        refused = int(rounds.rejected_R.sum())
        note = f"{used:,} of {asked:,} asked for; {refused:,} rejected"
        found.append(("Replies used", f"{100 * used / asked:.1f} %", note))
    return found


def problems(data: RunData) -> Html:
    """Return what the folder lacks, if anything."""
    if not data.problems:
        return Html("")
    lead = page.element("p", "Some of the run's files are missing or damaged:")
    return page.element("div", lead, page.items(data.problems), css="box warn")


def curves(data: RunData, head: Headline | None) -> Html:
    """Return the curves by round."""
    title = "Learning curves"
    if head is None:
        return page.section(title, page.element("p", "Nothing has been measured yet."))
    spread = head.name in data.rounds.spread
    best = "" if head.best is None else f", best {show(head.name, head.best)}"
    first = page.figure(
        metric_curves(data.rounds, head),
        _band_words(data) if spread else "",
        f"Curve of {word(head.name)} by round: final {show(head.name, head.final)}{best}",
    )
    losses = loss_curves(data.rounds, head)
    second = page.figure(losses, "", "Curves of the losses by round") if losses else ""
    odd = _not_drawable(data)
    lead = page.element("p", "Not drawn, because not finite (or beyond 1e100):") if odd else ""
    warning = page.element("div", lead, page.items(odd), css="box warn") if odd else ""
    pair = page.element("div", first, second, css="pair")
    return page.section(title, warning, pair, _costs(data, head))


def _costs(data: RunData, head: Headline) -> Html:
    """Return the curves over simulated time and over bytes, where there is a device profile."""
    found: list[Html] = []
    for by, note in COST_NOTES.items():
        drawn = cost_curves(data.rounds, head, by)
        if drawn:
            found.append(page.figure(drawn, note, f"{word(head.name)} by {COST_WORDS[by]}"))
    return page.element("div", *found, css="pair") if found else Html("")


def _band_words(data: RunData) -> str:
    who = {
        "cohort": "The clients are each round's participants",
        "all": "The clients are all of the population",
    }.get(str(data.setting("evaluation.clients")), "The clients are those that evaluated")
    return (
        f"{who}, on their own held-out samples. Their mean counts each client once; "
        "the band holds all but the worst and the best tenth."
    )


def _not_drawable(data: RunData) -> list[str]:
    found = []
    for group in GROUPS:
        for name, series in data.rounds.metrics[group].items():
            bad = series.round_M[~drawable(series.value_M)]
            if len(bad):
                count = f"{len(bad)} of {len(series.round_M)} measured rounds"
                found.append(f"{_GROUP_WORDS[group]} {name}: {count}, first in round {bad[0]}")
    return found


def decomposition(data: RunData) -> Html:
    """Return where the loss comes from, where the scenario asked for it."""
    terms = decomposition_terms(data.rounds)
    if terms is None:
        return Html("")
    last = {name: show("loss", float(series.value_M[-1])) for name, series in terms.items()}
    drawn = page.figure(
        decomposition_curves(terms),
        "The loss of each round's model on its participants' training samples, and the terms that "
        "it is the sum of: the local models' loss at home, what they lose on the others' samples, "
        "and what making one model of them adds (or, below zero, takes away).",
        "Curves of the loss and its three terms by round",
    )
    first = page.element("h3", f"Round {int(next(iter(terms.values())).round_M[-1]):,}")
    return page.section("Where the loss comes from", drawn, first, page.facts(last))


def diagnostics(data: RunData) -> Html:
    """Return the curves of what the strategy says of its rounds, if anything."""
    measured = data.rounds.metrics["diagnostics"]
    shown = {
        name: series
        for name, series in measured.items()
        if name not in TERMS and is_shown(name) and len(series.finite().round_M)
    }
    if not shown:
        return Html("")
    drawn = [
        page.figure(
            diagnostic_curve(order, name, series),
            f"Last: {show(name, float(series.finite().value_M[-1]))}.",
            f"Curve of {name.replace('-', ' ')} by round",
        )
        for order, (name, series) in enumerate(list(shown.items())[:MOST_DIAGNOSTICS])
    ]
    lead = page.element("p", "Measured by the strategy after the rounds that were evaluated.")
    return page.section("Diagnostics", lead, page.element("div", *drawn, css="pair"))


def privacy(data: RunData) -> Html:
    """Return the run's privacy statement, word for word."""
    if data.privacy is None:
        lack = "No privacy statement was written: nothing may be claimed of this run's privacy."
        return page.section("Privacy", page.element("div", page.element("p", lack), css="box warn"))
    statement = page.element("p", data.privacy, css="statement")
    return page.section("Privacy", page.element("div", statement, css="box"))


def audit(data: RunData) -> Html:
    """Return what an audit of the privacy statement found; nothing without one."""
    if not data.audit:
        return Html("")
    lines = page.join([page.element("p", line) for line in data.audit])
    picture = Html("")
    if data.audit_png is not None:
        source = base64.b64encode(data.audit_png).decode()
        picture = page.figure(
            f'<img src="data:image/png;base64,{source}" alt="">',
            "",
            "What the audit found, beside what is claimed",
        )
    return page.section(
        "Audit of the privacy statement", page.element("div", lines, css="box"), picture
    )


def who_took_part(data: RunData) -> Html:
    """Return replies by round and the raster of participation."""
    title, rounds = "Participation", data.rounds
    if not rounds.last:
        return page.section(title, page.element("p", "No round of training has ended yet."))
    seen = max((int(clients.max()) + 1 for clients in rounds.admitted if len(clients)), default=1)
    population = data.num_clients or seen
    trained = rounds.round_R >= 1
    asked, used = rounds.asked_R[trained], rounds.admitted_R[trained]
    words = [
        f"Clients asked per round: {_range(asked)}. Replies used: {_range(used)}.",
        f"{len(np.unique(np.concatenate(rounds.admitted))):,} of {population:,} clients took part "
        "at least once.",
    ]
    empty = int((used == 0).sum())
    if empty:
        words.append(f"{empty} rounds had no usable reply and left the model as it was.")
    if population > MOST_CLIENTS:
        words.append("The bars at the right are each bin of clients' share of the rounds.")
    else:
        words.append("The bars at the right are each client's share of the rounds.")
    drawn = page.figure(
        participation(rounds, population), " ".join(words), "Replies by round and who took part"
    )
    reasons = {name: f"{int(n.sum()):,}" for name, n in rounds.rejected.items() if n.any()}
    table = page.join([page.element("h3", "Rejected replies"), page.facts(reasons)])
    said = page.details(
        "The first rejections in words",
        page.items(f"round {number}: {words}" for number, words in rounds.details),
    )
    return page.section(title, drawn, table if reasons else "", said if rounds.details else "")


def _range(count: np.ndarray) -> str:
    low, high = int(count.min()), int(count.max())
    if low == high:
        return f"{low:,}"
    return f"{low:,} to {high:,} (mean {float(count.mean()):.1f})"


def who_holds_what(data: RunData) -> Html:
    """Return the heat map of clients and classes."""
    title, held = "Who holds what", data.holdings
    if held is None:
        return page.section(title, page.element("p", "The partition was not written."))
    size = held.size_K
    of = "" if len(size) == held.num_clients else f" (of the {len(size):,} shown)"
    caption = (
        f"Samples per client{of}: fewest {int(size.min()):,}, "
        f"median {float(np.median(size)):,.0f}, most {int(size.max()):,}; "
        f"{int(size.sum()):,} in all."
    )
    if "mse" in data.rounds.metrics["central"] | data.rounds.metrics["clients"]:
        caption += " The classes are tenths of the samples, ordered by the first target's value."
    words = f"Heat map of the samples of each class at each of {len(size)} clients"
    return page.section(title, page.figure(holdings_image(held), caption, words))


def evenness(data: RunData, head: Headline | None) -> Html:
    """Return how evenly the model serves the clients, where they evaluated it."""
    latest = data.rounds.latest
    if latest is None or head is None:
        return Html("")
    shown = [name for name in latest.values if is_shown(name)]
    first = head.name if head.name in shown else next(iter(shown), None)
    scores = [name for name in shown if is_fraction(name)]
    names = [name for name in dict.fromkeys([first, *scores]) if name is not None]
    pairs = [_spread_pair(name, latest) for name in names]
    if not any(pairs):
        return Html("")
    lead = page.element(
        "p",
        f"Each client's {' and '.join(map(word, names))} on its own held-out samples after round "
        f"{latest.server_round}, the last in which they were scored; every client counts once, "
        "whatever its size.",
    )
    return page.section("Fairness over clients", lead, *pairs, _every_client(data, names))


def _spread_pair(name: str, latest: PerClient) -> Html:
    spread = fairness(name, latest.values[name])
    if spread is None:
        return Html("")
    figures = {
        "Clients": f"{len(spread.value_K):,}",
        "Mean": show(name, spread.mean),
        "Standard deviation": show(name, spread.deviation),
        "Worst client": show(name, float(spread.value_K[0])),
        "Mean of the worst 10 %": show(name, spread.worst),
        "Median": show(name, float(np.median(spread.value_K))),
        "Mean of the best 10 %": show(name, spread.best),
        "Best client": show(name, float(spread.value_K[-1])),
    }
    if spread.left_out:
        figures["Left out, not finite"] = f"{spread.left_out:,}"
    words = f"Histogram of {name} over {len(spread.value_K)} clients"
    return page.element(
        "div",
        page.figure(fairness_histogram(spread, word(name)), "", words),
        page.facts({word(name)[:1].upper() + word(name)[1:]: "", **figures}),
        css="pair",
    )


def _every_client(data: RunData, names: list[str]) -> Html:
    """Return every client's last and best scores, and the means of both over clients."""
    rounds, latest = data.rounds, data.rounds.latest
    if latest is None or len(latest.client_K) > MOST_ROWS:
        return Html("")
    columns: dict[str, dict[int, float]] = {}
    means = []
    for name in names:
        best = best_round(name, rounds.evaluated)
        if best is None:
            continue
        for which, one in (("last", latest), ("best", best)):
            title = f"{word(name)}, {which} (round {one.server_round})"
            pairs = zip(one.client_K.tolist(), one.values[name].tolist(), strict=True)
            columns[title] = dict(pairs)
            means.append(show(name, float(one.values[name].mean())))
    kinds = [name for name in names for _ in range(2)]
    rows = [
        [
            f"{client:,}",
            *(
                show(kind, column[client]) if client in column else "-"
                for kind, column in zip(kinds, columns.values(), strict=False)
            ),
        ]
        for client in sorted(latest.client_K.tolist())
    ]
    table = page.table(["client", *columns], [["mean", *means], *rows], named=True)
    note = page.element(
        "p",
        "Best is the round whose mean over clients is best. It was chosen on the very samples that "
        "it is scored on, hence is optimistic.",
    )
    return page.details("Every client", page.join([note, table]))


def footprint(data: RunData) -> Html:
    """Return what the run took of its clients, where it has a device profile."""
    found = data.rounds.footprint
    if not found:
        return Html("")
    parts: list[str] = []
    for exchange, taken in found.items():
        count = len(taken.client_K)
        rows = []
        for name, (title, times, unit) in FOOTPRINT.items():
            if name not in taken.values:
                continue
            value_K = taken.values[name] * times
            low, middle, high = value_K.min(), np.median(value_K), value_K.max()
            figures = (low, middle, value_K.mean(), high, value_K.sum())
            rows.append([f"{title}, {unit}", *(f"{figure:,.4g}" for figure in figures)])
        title = {"train": "Training", "evaluate": "Evaluation"}.get(exchange, exchange)
        parts.append(page.element("h3", f"{title}, {count:,} clients"))
        head = ["over all rounds", "least", "median", "mean", "most", "all clients"]
        parts.append(page.table(head, rows, named=True))
    if "train" in found:
        parts.append(_footprint_of_each(found["train"]))
    lead = page.element(
        "p",
        "Bytes are those of the messages' records as Flower encodes them; operations, of matrix "
        "products and convolutions, are counted on what clients do; seconds are simulated, those "
        "of the scenario's devices and of the links of its topology.",
    )
    return page.section("Footprint of clients", lead, *parts)


def _footprint_of_each(taken: PerClient) -> Html:
    named = {name: kind for name, kind in FOOTPRINT.items() if name in taken.values}
    if len(taken.client_K) > MOST_ROWS:
        return Html("")
    rows = [
        [f"{client:,}", *(f"{taken.values[n][k] * kind[1]:,.4g}" for n, kind in named.items())]
        for k, client in enumerate(taken.client_K.tolist())
    ]
    head = ["client", *(f"{title}, {unit}" for title, _, unit in named.values())]
    return page.details("Every client, training", page.table(head, rows))


def last_rounds(data: RunData) -> Html:
    """Return the table of the latest evaluated rounds."""
    rounds = data.rounds
    columns = {
        f"{_GROUP_WORDS[group]} {word(name.removeprefix('train-'))}": (name, series.by_round())
        for group in ("central", "clients", "train")
        for name, series in list(rounds.metrics[group].items())
        if is_shown(name)
    }
    evaluated = {
        r
        for group in ("central", "clients")
        for series in rounds.metrics[group].values()
        for r in series.round_M.tolist()
    }
    at = [i for i, r in enumerate(rounds.round_R.tolist()) if r in evaluated or not evaluated]
    if not at:
        return Html("")
    admitted, rejected = rounds.admitted_R, rounds.rejected_R
    rows = []
    for i in at[-LAST_ROUNDS:]:
        r = int(rounds.round_R[i])
        values = [show(n, by[r]) if r in by else "-" for n, by in columns.values()]
        used = f"{admitted[i]:,} of {rounds.asked_R[i]:,}"
        seconds = f"{rounds.seconds_R[i]:.3g}"
        rows.append([f"{r:,}", *values, used, f"{rejected[i]:,}", seconds])
    title = f"Last {len(rows)} evaluated rounds" if evaluated else f"Last {len(rows)} rounds"
    head = ["round", *columns, "replies used", "rejected", "seconds"]
    return page.section(title, page.table(head, rows))
