"""The command line: verbs that read, check and hand over; the work is done in the rooms below."""
