"""What a record says in words: a number with what tells how sure it is.

A record is what `cvlab.run.Run.record` stores: a dictionary with `name`, `value`, `unit`, `tags`,
`device`, `source`, `profile`.
"""

from collections.abc import Mapping

from cvlab.metrics import Score


def interval(record: Mapping) -> tuple[float, float] | None:
    """The 95 % interval of a share whose tags say of how many images `n`; p10 to p90 of a time.

    None where the record does not tell.
    """
    value, tags = record["value"], record["tags"]
    if record["unit"] == "fraction" and tags.get("n"):
        return Score(float("nan"), round(value * tags["n"]), tags["n"]).interval
    return (tags["p10"], tags["p90"]) if {"p10", "p90"} <= tags.keys() else None


def text(record: Mapping) -> str:
    """As in `91.7 % (91.1 to 92.2 %, n = 10,000)`, `0.9 ms (0.84 to 1.1)` or `3.6 times`."""
    low_high, n = interval(record), record["tags"].get("n")
    if record["unit"] == "fraction":
        shown = f"{100 * record['value']:.1f} %"
        low, high = (100 * side for side in low_high or (0, 0))
        return f"{shown} ({low:.1f} to {high:.1f} %, n = {n:,})" if low_high else shown
    value = record["value"]
    shown = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    spread = f" ({low_high[0]:.3g} to {low_high[1]:.3g})" if low_high else ""
    return f"{shown} {record['unit']}{spread}"
