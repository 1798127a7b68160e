"""The faults, by the rooms that they are put into."""

from faults import cohorts, data, files, fit

FAULTS = [*data.FAULTS, *fit.FAULTS, *cohorts.FAULTS, *files.FAULTS]
