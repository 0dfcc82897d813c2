"""News about accounts, for apps that keep a log of it."""

from django.dispatch import Signal

# Somebody changed something of their account. Arguments: sender (the User class), user, verb
# ("account.token-made"), name (of what it was done to, or "") and request (None outside of one).
account_changed = Signal()
