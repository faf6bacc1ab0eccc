"""What both sides run; docs/architecture.md lists it. Only `shared.swarm` imports hivemind."""
