"""What the operator and a laptop share: spec, addresses, plan, store, runner. No torch, no kopf."""
