"""Privacy mechanisms, one file each; the accountant; the auditor."""
