"""`python -m fedsim.docs OUT`: write the sources of the documentation site."""

from __future__ import annotations

import sys
from pathlib import Path

from fedsim.docs import write

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m fedsim.docs OUT")
    made = write(Path(sys.argv[1]))
    sys.stdout.write(
        f"{len(made)} pages; next: mkdocs build --strict -f {sys.argv[1]}/mkdocs.yml\n"
    )
