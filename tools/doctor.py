"""What this machine and installation can do, which files you brought are whole. Exit code 0: the CPU demo can run."""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the doctor speaks before `pip install` too

from megavrc.files import RESULT_FORMAT
from megavrc.launch.doctor import USER_FILES, Finding, able, examine


def main() -> int:
    # The standard library's parser, not megavrc.config.command: jsonargparse may be what is missing.
    parser = argparse.ArgumentParser(description=__doc__)
    for name, (variable, purpose) in USER_FILES.items():
        parser.add_argument(f"--{name}", metavar="PATH", help=f"{purpose}; default: ${variable}")
    parser.add_argument("--json", metavar="FILE", help="write the findings there too")
    options = vars(parser.parse_args())
    report = options.pop("json")
    findings = examine(options)
    for line in table(findings):
        print(line)
    if report:
        content = {
            "format": RESULT_FORMAT,
            "able": able(findings),
            "findings": [vars(finding) for finding in findings],
        }
        try:
            Path(report).write_text(json.dumps(content, indent=1) + "\n")
        except OSError as error:
            print(f"error: --json {report}: {error.strerror}", file=sys.stderr)
            return 2
    return 0 if able(findings) else 1


def table(findings: list[Finding]) -> list[str]:
    widths = [max(len(getattr(finding, field)) for finding in findings) for field in ("name", "found")]
    lines, group = [], ""
    for finding in findings:
        if finding.group != group:
            group = finding.group
            lines += ["", group]
        cells = f"  {finding.state:4}  {finding.name:{widths[0]}}  {finding.found:{min(widths[1], 44)}}"
        lines.append(f"{cells}  {finding.advice}".rstrip())
    failures = sum(finding.state == "FAIL" for finding in findings)
    verdict = (
        "The CPU demo can run here: make demo"
        if not failures
        else f"The CPU demo cannot run here: {failures} FAIL"
    )
    return [*lines[1:], "", verdict]


if __name__ == "__main__":
    sys.exit(main())
