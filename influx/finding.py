"""One thing that `influx doctor` has looked at."""

from __future__ import annotations

from dataclasses import dataclass

FINE, NOTE, OFF, BROKEN = "ok", "note", "off", "broken"


@dataclass(frozen=True)
class Finding:
    """`state` is "ok", "note" (it works, could be better), "off" (an extra that is not installed) or "broken"; `remedy` says what to do,
    where there is anything."""

    name: str
    said: str
    state: str = FINE
    remedy: str = ""
