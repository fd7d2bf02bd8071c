"""What ships with ddbench besides methods: plugins like anyone's, declared as entry points."""
