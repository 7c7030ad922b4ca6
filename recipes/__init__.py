"""One thin file a job: flags in, library calls, an exit code out."""
