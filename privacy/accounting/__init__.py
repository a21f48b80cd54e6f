"""Accountants, one idea per file; `privacy.accountant` chooses among them."""
