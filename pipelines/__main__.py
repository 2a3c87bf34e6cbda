"""``python -m pipelines`` is ``wsi-ats``."""

from pipelines.cli import main

main()
