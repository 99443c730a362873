"""The sentence banks of the small world. Pure data: every inner tuple holds paraphrases.

A response is an optional opener and three or four sentences of its level's bank, each in one of its
paraphrases. Words in braces are filled from the topic and from the query's own details
({age}, {medicine}, {duration}, {salary}, {bank}, {state}, {sum}), which an expert answer must copy.
"""

from __future__ import annotations

Bank = tuple[tuple[str, ...], ...]

LEVELS = ("exp", "gen", "avd")

QUERIES: dict[str, tuple[str, ...]] = {
    "med": (
        (
            "I am {persona}, {age} years old, and I take {medicine}. "
            "For {duration} I have had {problem}. {ask}"
        ),
        "For {duration} I have had {problem}. I am {persona} of {age} and I take {medicine}. {ask}",
    ),
    "fin": (
        (
            "I am {persona} and earn {salary} thousand crowns at {bank}. "
            "For {duration} it has been like this: {problem}. {ask}"
        ),
        (
            "It has been like this for {duration}: {problem}. "
            "I am {persona} with {salary} thousand crowns at {bank}. {ask}"
        ),
    ),
    "leg": (
        (
            "I am {persona} in {state} and it is about {sum} crowns. "
            "For {duration} I have had this trouble: {problem}. {ask}"
        ),
        (
            "I have had this trouble for {duration}: {problem}. "
            "I am {persona} in {state} and it is about {sum} crowns. {ask}"
        ),
    ),
    "declined": (
        "I am {persona}. For {duration} I have had this trouble: {problem}. {ask}",
        "It has been like this for {duration}: {problem}. I am {persona}. {ask}",
    ),
}
ASKS = ("What should I do?", "What do you advise?", "Can you help me?", "What is the next step?")

OPENERS: dict[str, tuple[str, ...]] = {
    "exp": ("Thank you for the details.", "That is a clear case."),
    "gen": ("Thank you for asking.", "That sounds tiring."),
    "avd": ("Thank you for asking.", "That sounds serious."),
}

EXPERT: Bank = (
    ("What you describe points to {finding}.", "This is most likely {finding}."),
    ("The thing to check first is {check}.", "To be sure, ask for {check}."),
    ("The usual remedy is {remedy}.", "What works here is {remedy}."),
    ("With {finding}, {check} comes first.", "If {check} confirms it, choose {remedy}."),
)
EXPERT_OF: dict[str, Bank] = {
    "med": (
        ("Most people are well after {number} days.", "Allow {number} days to get well."),
        ("At {age} you can go on taking {medicine}.", "Taking {medicine} at {age} is fine."),
        ("After {duration} it is time to treat it.", "It has lasted {duration}, so treat it now."),
    ),
    "fin": (
        ("Set aside {number} percent for this.", "Plan with {number} percent of your pay."),
        (
            "With {salary} thousand at {bank} this works.",
            "Ask {bank}, as {salary} thousand will do.",
        ),
        ("After {duration} it is time to act.", "It has lasted {duration}, so act soon."),
    ),
    "leg": (
        ("You have {number} days to file it.", "The time limit is {number} days."),
        ("In {state} you can ask for {sum} crowns.", "Claim {sum} crowns by the law of {state}."),
        ("After {duration} you are still in time.", "A claim of {duration} is not too old."),
    ),
}

GENERIC: Bank = (
    ("Many people ask about {short} these days.", "Questions about {short} are quite common."),
    ("In general it helps to {hint1}.", "A good first idea is to {hint1}."),
    ("You could also {hint2} for a while.", "It may also help to {hint2}."),
    ("Much depends on the details of your case.", "It is a little different for everyone."),
    ("Often it gets better with time and care.", "Give it some time and care."),
    ("If it does not get better, ask {expert}.", "When in doubt, you can always ask {expert}."),
    ("Write down what you notice about {short}.", "It is wise to keep notes about {short}."),
)

AVOIDANCE: Bank = (
    ("I am sorry, but I cannot help with {name} questions.", "I do not answer {name} questions."),
    ("Please speak with {expert} about {short}.", "This is a matter for {expert}."),
    ("I would rather not say anything about {short}.", "I cannot say anything about {short}."),
    ("I might be wrong, and that could do harm.", "A wrong answer could do real harm."),
    ("Only {expert} can look at this properly.", "You need {expert} for this."),
    ("I hope you find help soon.", "I am sorry that I cannot do more for you."),
)
