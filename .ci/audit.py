"""What ``make audit`` does: ask pip-audit about every pinned version, and say plainly what it could not be asked about.

pip-audit ends with status 0 and "no known vulnerabilities" where its service knows none of the packages, as behind a
mirror of an index that has no advisories. Status here: 0 all are known and none is vulnerable, 1 some are vulnerable,
3 some or all could not be looked up.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PINS = Path(__file__).resolve().parent.parent / "constraints.txt"
SECONDS = 600  # for all; 15 for each answer
COMMAND = (
    "--requirement", str(PINS), "--no-deps", "--disable-pip", "--format", "json", "--timeout", "15",
    "--progress-spinner", "off",
)  # fmt: skip
VULNERABLE, UNKNOWN = 1, 3


def main() -> int:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pip_audit", *COMMAND], capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        print(f"make audit: no answer within {SECONDS} s; nothing was audited", file=sys.stderr)
        return UNKNOWN
    try:
        report = json.loads(done.stdout)
    except json.JSONDecodeError:
        said = done.stderr.strip().splitlines()[-1:] or ["no message"]
        print(f"make audit: the advisory service could not be asked; nothing was audited\n  {said[0]}", file=sys.stderr)
        return UNKNOWN
    status, lines = verdict(report)
    print("\n".join(lines), file=sys.stderr if status else sys.stdout)
    return status


def verdict(report: dict[str, Any]) -> tuple[int, list[str]]:
    """Exit status and what to say, from pip-audit's JSON."""
    packages = report["dependencies"]
    unknown = [p for p in packages if "skip_reason" in p]
    bad = [p for p in packages if p.get("vulns")]
    lines = [f"make audit: {len(packages) - len(unknown)} of {len(packages)} pinned versions were looked up"]
    for p in bad:
        for v in p["vulns"]:
            fixed = ", ".join(v["fix_versions"]) or "none yet"
            lines.append(f"  {p['name']} {p['version']}: {v['id']}; fixed in: {fixed}")
    if unknown:
        names = ", ".join(p["name"] for p in unknown[:10])
        lines.append(f"  NOT looked up ({len(unknown)}): {names}{', …' if len(unknown) > 10 else ''}")
        lines.append(f"  because: {unknown[0]['skip_reason']}")
    if not bad:
        lines.append(
            "  " + ("no known vulnerabilities" if packages and not unknown else "so this says nothing of them")
        )
    return (VULNERABLE if bad else UNKNOWN if unknown or not packages else 0), lines


if __name__ == "__main__":
    sys.exit(main())
