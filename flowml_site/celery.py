"""The control process's Celery app. Nodes have their own (``workers.node.celery_app``)."""

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "flowml_site.settings")

app = Celery("flowml")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
