"""Word problems with integer answers, and a reward that untrained responses get about half the time."""

from gvm_ray.types import Completion, Prompt

PROBLEMS = (
    ("Nora has 7 red marbles and 5 blue ones. How many marbles does she have in all?", "12"),
    ("A baker made 48 rolls and sold 29 of them. How many rolls are left?", "19"),
    ("Each box holds 6 eggs. How many eggs are in 9 boxes?", "54"),
    ("Three friends share 24 stickers equally. How many does each of them get?", "8"),
    ("Omar read 15 pages on Monday and twice as many on Tuesday. How many pages did he read on both days?", "45"),
    ("A bus has 40 seats. 17 of them are taken, and then 6 people get off. How many seats are free?", "29"),
    ("Tickets cost 8 dollars. Lena buys 4 and pays with a 50 dollar note. How much change does she get?", "18"),
    ("There are 5 rows of 12 chairs, and 13 chairs are broken. How many chairs can be used?", "47"),
    ("A rope of 90 meters is cut into pieces of 15 meters. How many pieces are there?", "6"),
    ("Ben is 11 years old. His sister is 4 years younger. How old is she?", "7"),
    ("A farm has 14 cows and 3 times as many hens. How many animals are that?", "56"),
    ("Ida saves 5 dollars a week. How many weeks does she need for a bike of 120 dollars?", "24"),
    ("A shelf has 32 books. Paul takes 8 and brings back 3. How many books are on the shelf?", "27"),
    ("Four buses with 35 children each go to the zoo. How many children go there?", "140"),
    ("A tank holds 200 liters and is half full. Then 30 liters are added. How many liters are in it?", "130"),
    ("Sara picks 63 apples and puts them into bags of 7. How many bags does she fill?", "9"),
)


def even_length(prompt: Prompt, completion: Completion) -> float:
    """1 if the response has an even number of characters."""
    return float(len(completion.text) % 2 == 0)
