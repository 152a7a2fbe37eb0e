"""The Space: `python space/app.py` here, and unchanged on Hugging Face. The app itself is `abm_hf.demo.app`.

Environment: `MODEL_ID` (a Hub id or a directory; the packaged checkpoint otherwise), `GRADIO_SERVER_NAME` and
`GRADIO_SERVER_PORT` (set by Hugging Face; 127.0.0.1 and 7860 otherwise).
"""

import os
import sys
from pathlib import Path

# In a checkout the package lies beside this folder, and on a Space in it; installed, it is found anyway.
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from abm_hf.demo.app import DemoError, launch  # noqa: E402


def main() -> int:
    """Runs until interrupted; 2 where the demo cannot start."""
    try:
        launch(
            host=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"),
            port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
            model=os.environ.get("MODEL_ID") or None,
        )
    except (DemoError, ValueError) as error:
        sys.stderr.write(f"demo: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
