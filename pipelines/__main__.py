"""Run ``wsi-ats`` as ``python -m pipelines``."""

from pipelines.cli import main

main()
