"""The faults, by the rooms that they are put into."""

from faults import cohorts, data, files, fit, tables, worker

FAULTS = [*data.FAULTS, *fit.FAULTS, *worker.FAULTS, *cohorts.FAULTS, *files.FAULTS, *tables.FAULTS]
