"""News from tasks, for the apps on the right.

Both are sent by the control process only, at least once each: a receiver must be idempotent. An
exception in a receiver leaves the news unhandled; the sweep sends it again, a few times.
"""

from django.dispatch import Signal

# event: Event, task: Task. Sent for each event of a type in ``Event.HANDLED``, in order per task.
task_event = Signal()

# task: Task, in its terminal state. Sent after every event of the task has been handled.
task_ended = Signal()
