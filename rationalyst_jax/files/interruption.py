"""Work that was told to stop, and stopped where it can be continued."""

# sysexits.h calls it EX_TEMPFAIL: try again. What launches a job runs it again where it ends so.
EXIT_CODE = 75


class Interrupted(Exception):
    """Raised once all that was done is on the disk; says how far it came."""
