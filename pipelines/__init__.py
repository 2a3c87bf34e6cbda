"""Stages that work on many slides: the only package that imports Dask.

Each stage is a file with one function of plain arguments, and a command of ``wsi-ats``::

    prepare   slides            -> thumbnails and tissue
    convert   slides            -> OME-Zarr pyramids
    train     slides, labels    -> a model
    score     slides, a model   -> predictions and the tiles they are based on
    evaluate  scores, labels    -> metrics with confidence intervals, curves, a figure
    crossval  slides, labels    -> train, score and evaluate for each of several folds
    export    scores            -> tables and files for other tools
    info      slides            -> format, resolution, tissue, cost of scoring
    settings                    -> all settings, or a commented settings file
    doctor                      -> the state of the installation
    demo                        -> the whole pipeline on synthetic slides

``prepare``, ``score`` and ``convert`` declare their work on one slide, their files and their columns
(``_records``). ``_stage`` does the rest for all of them: it opens the folder of the run (``_runs``), works
on the slides (``_carry_out``, or ``_rounds`` for slides that arrive) and writes tables and summary. Slides
become Dask tasks in ``_tasks``, on a cluster of ``_cluster``; ``_attempts`` decides what to do when a worker
dies, hangs or disappears. A run can be killed at any moment and started again. The work on one slide is in
:mod:`wsi_ats`. The command line is ``cli`` (commands), ``_options`` (groups of options) and ``_command``
(the options, the result and the exit code of every command).

Examples
--------
>>> from wsi_ats.tables.manifest import read_manifest
>>> from pipelines.score import score
>>> summary = score(read_manifest("slides"), Path("run"), Path("scores"))  # doctest: +SKIP
>>> summary.counts  # doctest: +SKIP
{'done': 120, 'failed': 1, 'no_tissue': 0}

A script that calls a stage must guard its entry with ``if __name__ == "__main__":``, because the
processes of a local cluster import it.
"""
