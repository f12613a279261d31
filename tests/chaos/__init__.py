"""The long versions of what ``make test`` checks in short, and the ledger of the fault matrix."""
