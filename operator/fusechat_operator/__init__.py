"""The kopf operator: watches FusionRuns and runs their plan as Jobs. Knows core, never the stages."""
