from attempt_cli.cli.main import main

main()
