from presswork.cli import main

main()
