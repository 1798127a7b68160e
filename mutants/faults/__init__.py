"""The faults, by the rooms that they are put into."""

from faults import cohorts, data, files, fit, studies, tables, worker

FAULTS = [
    *data.FAULTS,
    *fit.FAULTS,
    *worker.FAULTS,
    *cohorts.FAULTS,
    *files.FAULTS,
    *studies.FAULTS,
    *tables.FAULTS,
]
