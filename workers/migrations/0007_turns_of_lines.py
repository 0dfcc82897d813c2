import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    """What the table holds is of the last minutes, so it starts anew."""

    dependencies = [
        ("organizations", "0002_audit"),
        ("workers", "0006_limits"),
    ]

    operations = [
        migrations.DeleteModel("Turn"),
        migrations.CreateModel(
            name="Turn",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("queue", models.CharField(max_length=80)),
                ("light", models.BooleanField()),
                ("priority", models.SmallIntegerField()),
                ("at", models.DateTimeField()),
                (
                    "out_of_turn",
                    models.BooleanField(
                        default=False, help_text="It went first, having waited long."
                    ),
                ),
                (
                    "organization",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="turns",
                        to="organizations.organization",
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("organization", "queue", "light", "priority"), name="turn_unique"
                    )
                ],
            },
        ),
    ]
