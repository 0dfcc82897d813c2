import django.contrib.postgres.indexes
import django.utils.timezone
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("workers", "0008_lines_that_wait")]

    operations = [
        migrations.RemoveIndex(model_name="task", name="task_leases"),
        migrations.AlterField(
            model_name="worker",
            name="last_seen_at",
            field=models.DateTimeField(default=django.utils.timezone.now),
        ),
        migrations.AddIndex(
            model_name="task",
            index=models.Index(
                condition=models.Q(("state", "running")), fields=["worker"], name="task_running"
            ),
        ),
        migrations.AddIndex(
            model_name="task",
            index=models.Index(
                condition=models.Q(("state", "succeeded")),
                fields=["queue", "kind", "-finished_at"],
                name="task_durations",
            ),
        ),
        migrations.AddIndex(
            model_name="task",
            index=models.Index(
                condition=models.Q(("finished_at__isnull", False)),
                fields=["finished_at"],
                name="task_ends",
            ),
        ),
        migrations.AddIndex(
            model_name="task",
            index=django.contrib.postgres.indexes.BrinIndex(
                fields=["queued_at"], name="task_queued_at"
            ),
        ),
    ]
