"""Write the page of a figure, table or study from finished runs (`tickets report`)."""

from recipes.report import main

if __name__ == "__main__":
    main()
