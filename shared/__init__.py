"""What both sides run; docs/architecture.md lists the modules. Only `shared.swarm` imports hivemind."""
