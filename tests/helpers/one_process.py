"""Several commands in one interpreter: each start of torch takes seconds.

As a program: commands come in as JSON, and exit codes with outputs leave as lines of JSON on stderr.
"""

import contextlib
import io
import json
import sys
from collections.abc import Iterable, Iterator

import pytest

from lit_debias.cli.main import main


def answers(commands: Iterable[list[str]]) -> Iterator[tuple[int, str]]:
    """Yield exit code and output of ``lit-debias ...`` or ``python -m pytest ...``."""
    for program, *args in commands:
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            code = pytest.main(args[2:]) if program == "python" else main(args)
        yield int(code), output.getvalue()


if __name__ == "__main__":
    for answer in answers(json.load(sys.stdin)):
        print(json.dumps(answer), file=sys.stderr)
