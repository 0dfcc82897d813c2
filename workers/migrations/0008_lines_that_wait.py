import django.utils.timezone
from django.db import migrations, models

# Two that open lines of one organization at the same time, in different orders, would wait for each
# other: so they do it one after the other. The first lock is shared, and `lines.forget_idle` takes
# it alone.
OPEN = """
CREATE FUNCTION workers_open_line() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_advisory_xact_lock_shared(hashtext('workers_turn'));
  IF NOT EXISTS (
    SELECT 1 FROM workers_turn WHERE organization_id = NEW.organization_id
       AND queue = NEW.queue AND light = NEW.light AND priority = NEW.priority
  ) THEN
    PERFORM pg_advisory_xact_lock(hashtextextended('line of ' || NEW.organization_id, 0));
    INSERT INTO workers_turn (organization_id, queue, light, priority, since, out_of_turn)
    VALUES (NEW.organization_id, NEW.queue, NEW.light, NEW.priority,
            CASE WHEN TG_OP = 'INSERT' THEN NEW.queued_at ELSE now() END, false)
    ON CONFLICT DO NOTHING;
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER workers_open_line
AFTER INSERT OR UPDATE OF state, queue, light, priority, organization_id ON workers_task
FOR EACH ROW WHEN (NEW.state = 'queued') EXECUTE FUNCTION workers_open_line();
INSERT INTO workers_turn (organization_id, queue, light, priority, since, out_of_turn)
SELECT organization_id, queue, light, priority, min(queued_at), false
  FROM workers_task WHERE state = 'queued' GROUP BY 1, 2, 3, 4
ON CONFLICT DO NOTHING;
"""
CLOSE = """
DROP TRIGGER workers_open_line ON workers_task;
DROP FUNCTION workers_open_line();
DELETE FROM workers_turn WHERE at IS NULL;
"""


class Migration(migrations.Migration):
    dependencies = [("workers", "0007_turns_of_lines")]

    operations = [
        migrations.AddField(
            model_name="turn",
            name="since",
            field=models.DateTimeField(
                default=django.utils.timezone.now,
                help_text="It waits since then: its last start, or its first task.",
            ),
        ),
        migrations.AlterField(
            model_name="turn",
            name="at",
            field=models.DateTimeField(
                help_text="When something of it was last started.", null=True
            ),
        ),
        migrations.RunSQL(OPEN, CLOSE),
    ]
