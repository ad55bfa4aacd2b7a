"""The page of a run of `gpu_suite.py`: what each part found, times beside MONAI's, shipped configurations, errors."""

from collections.abc import Iterator, Mapping
from typing import Any

Found = dict[str, Any]
_DIFFERENCES = ("networks", "differences", "outputs", "gradients", "max_rel_diff")
"""Keys of what differs from a reference, relative to it, flat or by name."""


def markdown(report: Found) -> str:
    """Return the page of a report."""
    lines = [
        "# What a GPU shows",
        "",
        f"Written by `benchmarks/gpu_suite.py` on {report['gpu'] or 'a CPU'}{', tiny' * report['tiny']}, torch "
        f"{report['versions']['torch']}, in {report['seconds']:.0f} s.",
        "",
        f"Failed: {', '.join(report['failed']) or 'nothing'}.",
        f"Not reached: {', '.join(report['not_reached']) or 'nothing'}.",
        "",
        "| part | ok | seconds | what |",
        "|---|---|---|---|",
    ]
    for name, found in report["parts"].items():
        word = {True: "yes", False: "no", None: "not reached"}[found["ok"]]
        lines.append(f"| {name} | {word} | {found.get('total_seconds', '')} | {'; '.join(_said(found))} |")
    timed = {name: found for name, found in report["parts"].items() if isinstance(found.get("seconds"), dict)}
    beside = {name: found for name, found in timed.items() if not name.startswith("shipped_")}
    shipped = {name: found for name, found in timed.items() if name.startswith("shipped_")}
    for rows in (list(_beside_monai(beside)), list(_shipped(shipped)), list(_errors(report["parts"]))):
        lines += ["", *rows] if rows else []
    return "\n".join(lines) + "\n"


def _said(found: Found) -> Iterator[str]:
    """Yield what one part found, in a few words."""
    differences = dict(_differences(found))
    if differences:
        worst = max(differences, key=differences.__getitem__)
        yield f"largest difference {differences[worst]:.1e}{f' ({worst})' if worst else ''}"
    if "changed_by_float32" in found:
        few, plain, count = found["changed_by_float32"], found["changed_by_defaults"], found["tokens"]
        yield f"{few} of {count:,} tokens changed, {plain} without float32"
    if "dtypes" in found:
        yield f"{len(found['dtypes'])} kept their type" if found["ok"] else f"{found['dtypes']}"
    if "breaks" in found:
        breaks = sum(found["breaks"].values())
        yield f"{breaks} graph break{'s' * (breaks != 1)}"
    if "excess" in found:
        yield f"waits: {found['excess'] or 'none that is not known'}"
    if "stages" in found:
        yield "trained " + ", ".join(name for name, stage in found["stages"].items() if stage["code"] == 0)
    if "skipped" in found:
        yield f"skipped: {found['skipped']}"
    if "peak_gib" in found:
        yield f"{found['peak_gib']:.2f} GiB of {found['planned_gib']:.2f} planned"


def _differences(found: Found, of: str = "") -> Iterator[tuple[str, float]]:
    for key in _DIFFERENCES:
        value = found.get(key)
        if isinstance(value, Mapping):
            for name, inner in value.items():
                yield from _differences(dict(inner), name) if isinstance(inner, Mapping) else [(name, inner)]
        elif value is not None:
            yield of, value
    if "gradient_norm" in found:
        yield f"{of}, gradients", found["gradient_norm"]


def _beside_monai(parts: dict[str, Found]) -> Iterator[str]:
    """Yield the table of times of ours and of MONAI's modules; both kinds of arms end with whose they are."""
    if parts:
        yield from (
            "## Beside MONAI",
            "",
            "| part | what | ours, s | MONAI, s | MONAI / ours |",
            "|---|---|---|---|---|",
        )
    for name, found in parts.items():
        seconds = found["seconds"]
        for arm in sorted({arm.rpartition(" ")[0] for arm in seconds}):
            ours, theirs = (seconds.get(f"{arm} {whose}") for whose in ("ours", "monai"))
            ratio = f"{theirs / ours:.2f}" if ours and theirs else ""
            cells = (f"{value:.3g}" if value else "" for value in (ours, theirs))
            yield f"| {name} | {arm} | {' | '.join(cells)} | {ratio} |"


def _shipped(parts: dict[str, Found]) -> Iterator[str]:
    """Yield the table of the shipped configurations."""
    arms = sorted({arm for found in parts.values() for arm in found["seconds"]})
    if parts:
        yield from (
            "## Shipped configurations",
            "",
            "Seconds of a step at the configured batch and of one volume.",
            "",
        )
        yield f"| configuration | batch | {' | '.join(arms)} | GiB | planned |"
        yield f"|{'---|' * (len(arms) + 4)}"
    for name, found in parts.items():
        cells = [f"{found['seconds'][arm]:.3g}" if arm in found["seconds"] else "" for arm in arms]
        cells += [f"{found[key]:.2f}" if key in found else "" for key in ("peak_gib", "planned_gib")]
        yield f"| {name.removeprefix('shipped_')} | {found.get('batch', '')} | {' | '.join(cells)} |"


def _errors(parts: dict[str, Found]) -> Iterator[str]:
    """Yield the errors of parts that failed, each with its end."""
    failed = {name: found for name, found in parts.items() if found["ok"] is False}
    if failed:
        yield "## Failed"
    for name, found in failed.items():
        said = found.get("traceback") or found.get("error") or "out of its bounds; see the JSON file"
        yield from ("", f"{name}:", "", "```", str(said).strip()[-1500:], "```")
