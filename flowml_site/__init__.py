"""The site: settings, URLs, processes."""

from flowml_site.celery import app as celery_app

__all__ = ["celery_app"]
