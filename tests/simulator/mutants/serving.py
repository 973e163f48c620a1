"""Faults of the HTTP side: the table of requests, deltas, texts, and the line between the processes."""

from __future__ import annotations

from typing import Any

from quire.engine.frames import Outbox
from quire.engine.ledger import Ledger
from quire.engine.messages import OutputRow
from quire.engine.outputs import TextDelta
from quire.engine.request_table import RequestTable
from quire.engine.stop_strings import StopStrings
from quire.simulator.mutants.mutant import Mutant


def forget_a_ticket_on_timeout(original: Any, table: Any, request_id: str, delta: TextDelta, now: float) -> Any:
    """A choice that ends by its deadline is still counted."""
    effects = original(table, request_id, delta, now)
    table._num_sequences += delta.finish_reason == "timeout"
    return effects


def forget_tickets_of_leavers(original: Any, table: Any, request_id: str, now: float, **options: Any) -> bool:
    """The other choices of a client that leaves are still counted."""
    entry = table._entries.get(request_id)
    left = 0 if entry is None else len(entry.open_choices)
    forgotten: bool = original(table, request_id, now, **options)
    table._num_sequences += left > 1
    return forgotten


def serve_who_has_left(original: Any, table: Any, request_id: str, now: float, **options: Any) -> bool:
    """A client that leaves stays in the table."""
    entry = table._entries.get(request_id)
    forgotten: bool = original(table, request_id, now, **options)
    if entry is not None and entry.open_choices and table.state == "ready":
        table._entries[request_id] = entry
        table._num_sequences += len(entry.open_choices)
    return forgotten


def fail_twice(original: Any, table: Any, *arguments: Any, **options: Any) -> Any:
    """A request that fails is told so twice."""
    effects = original(table, *arguments, **options)
    return effects + effects[:1]


def serve_ended_choices(original: Any, table: Any, row: OutputRow, now: float) -> Any:
    """A choice that has ended is opened again by the next row of its request."""
    entry = table._entries.get(row.request_id)
    if entry is not None and row.choice not in entry.open_choices:
        entry.open_choices.add(row.choice)
        entry.detokenizers[row.choice].finished = False
        table._num_sequences += 1
    return original(table, row, now)


def lose_text_when_merging(original: Any, delta: TextDelta, later: TextDelta) -> TextDelta:
    """A slow reader gets the newest delta alone."""
    return later


def lose_rows_when_merging(original: Any, row: OutputRow, later: OutputRow) -> OutputRow:
    """A stalled HTTP side gets the newest row of a sequence alone."""
    return later


def send_the_newest_first(original: Any, outbox: Any) -> Any:
    """What the engine said last is read first."""
    if outbox._entries:
        outbox._entries.rotate(1)
    return original(outbox)


def keep_the_held_text(original: Any, stop: StopStrings, text: str, *, floor: int, final: bool = False) -> Any:
    """The beginning of a stop string at the end of an answer is never shown."""
    return original(stop, text, floor=floor, final=False)


def stop_before_min_tokens(original: Any, stop: StopStrings, text: str, *, floor: int, final: bool = False) -> Any:
    """A stop string counts before min_tokens."""
    return original(stop, text, floor=0, final=final)


def show_part_of_a_stop_string(original: Any, stop: Any, text: str, *, floor: int, final: bool = False) -> Any:
    """Text is shown at once, whatever it may become."""
    return original(stop, text, floor=floor, final=True)


def book_twice(original: Any, ledger: Any, now: float) -> None:
    """The time of a step is booked again with the next one."""
    unbooked = list(ledger._unbooked)
    cursors = {account: account._until for account in ledger._accounts.values()}
    original(ledger, now)
    if len(unbooked) > 1:
        for account, until in cursors.items():
            account._until = until


def give_up_what_is_known(original: Any, table: Any, request_ids: Any, failure: Any, *rest: Any, **options: Any) -> Any:
    """When one request is lost, another one is given up with it."""
    names = list(request_ids)
    if failure.code == "request_lost" and names:
        names = [*names, *[name for name in table._entries if name not in names][:1]]
    return original(table, names, failure, *rest, **options)


SERVING = (
    Mutant(RequestTable, "_deliver", forget_a_ticket_on_timeout),
    Mutant(RequestTable, "_forget", forget_tickets_of_leavers),
    Mutant(RequestTable, "_forget", serve_who_has_left),
    Mutant(RequestTable, "_fail", fail_twice),
    Mutant(RequestTable, "_row", serve_ended_choices),
    Mutant(RequestTable, "_fail", give_up_what_is_known),
    Mutant(TextDelta, "merge", lose_text_when_merging),
    Mutant(OutputRow, "merge", lose_rows_when_merging),
    Mutant(Outbox, "take", send_the_newest_first),
    Mutant(StopStrings, "push", keep_the_held_text),
    Mutant(StopStrings, "push", stop_before_min_tokens),
    Mutant(StopStrings, "push", show_part_of_a_stop_string),
    Mutant(Ledger, "book", book_twice),
)
