"""Synthetic clinical intake notes and their summaries.

Every note is made up from the tables below; no patient data is used anywhere.
A note is written from known facts, so its summary is exact by construction:

* complaint: the canonical name of the presenting complaint
* onset: "N units ago", a named moment ("this morning"), or "not recorded"
* medication: current drugs with dose in the order of the note, "none", or
  "not recorded"; drugs that were stopped do not count
* allergy: the patient's own allergy, "none known", or "not recorded"
* urgency: "emergent" where the complaint is one or a red flag is present,
  else "urgent" where the complaint is one or an amber flag is present,
  else "routine"

Held-out notes are notes with a reserved (complaint, drug) pair and with a
family name of a separate list; training notes have neither.
"""

import argparse
import json
import random
import re
import zlib
from pathlib import Path

from formulary import FORMULARY, NAME_ENDS, NAME_MIDDLES, NAME_STARTS, UNSEEN

FIELDS = ("complaint", "onset", "medication", "allergy", "urgency")
RESERVED_SHARE = 12  # one (complaint, drug) pair in this many is held out
CAPITAL_SHARE = 0.3  # of the training notes have their drugs with a capital

# urgency: canonical name | ways to write it
_COMPLAINTS = """
emergent: chest pain | chest pain, pain in the chest, central chest pain, crushing pain in the chest
emergent: shortness of breath | shortness of breath, trouble breathing, breathlessness, SOB
emergent: facial droop | facial droop, drooping of one side of the face, a drooping face
emergent: slurred speech | slurred speech, difficulty getting words out, slurring of words
emergent: seizure | a seizure, a fit with jerking, seizure activity
emergent: loss of consciousness | loss of consciousness, passing out, an episode of blacking out
emergent: vomiting blood | vomiting blood, haematemesis, bringing up blood
emergent: throat swelling | throat swelling, swelling of the throat, a swollen tight throat
emergent: overdose | an overdose, taking too many tablets, an intentional overdose
emergent: severe bleeding | severe bleeding, heavy bleeding from a wound, bleeding that will not stop
emergent: arm weakness | arm weakness, weakness of one arm, a weak arm
emergent: suicidal thoughts | suicidal thoughts, thoughts of ending life, suicidal ideation
urgent: abdominal pain | abdominal pain, stomach pain, belly ache, pain in the abdomen
urgent: high fever | a high fever, a high temperature, fever with rigors
urgent: palpitations | palpitations, a racing heart, heart fluttering
urgent: blood in urine | blood in the urine, haematuria, red urine
urgent: blood in stool | blood in the stool, rectal bleeding, bloody stools
urgent: severe headache | a severe headache, a very bad headache, the worst headache
urgent: head injury | a head injury, a blow to the head, a bump on the head
urgent: wrist injury | a wrist injury, an injured wrist, a painful wrist after a fall
urgent: ankle injury | an ankle injury, a twisted ankle, a rolled ankle
urgent: burn | a burn, a scald, a burn to the hand
urgent: animal bite | an animal bite, a dog bite, a cat bite
urgent: eye pain | eye pain, pain in the eye, a painful eye
urgent: vision loss | vision loss, loss of vision, not being able to see properly
urgent: persistent vomiting | persistent vomiting, vomiting all the time, repeated vomiting
urgent: flank pain | flank pain, pain in the side, loin pain
urgent: calf swelling | calf swelling, a swollen calf, swelling of the lower leg
urgent: wound infection | a wound infection, an infected wound, an infected cut
urgent: asthma flare | an asthma flare, worse asthma, an asthma exacerbation
urgent: panic attack | a panic attack, panic, an episode of panic
urgent: dehydration | dehydration, being dehydrated, signs of dehydration
urgent: testicular pain | testicular pain, pain in the testicle, a painful testicle
urgent: hives | hives, urticaria, an itchy widespread rash with welts
routine: sore throat | a sore throat, throat pain, a painful throat
routine: cough | a cough, coughing, a dry cough
routine: runny nose | a runny nose, a blocked nose, nasal congestion
routine: earache | earache, ear pain, a painful ear
routine: back pain | back pain, lower back pain, a sore back
routine: knee pain | knee pain, a painful knee, pain in the knee
routine: shoulder pain | shoulder pain, a sore shoulder, pain in the shoulder
routine: neck pain | neck pain, a stiff sore neck, pain in the neck
routine: hip pain | hip pain, a painful hip, pain in the hip
routine: mild headache | a mild headache, a slight headache, a dull headache
routine: dizziness | dizziness, feeling dizzy, lightheadedness
routine: fatigue | fatigue, tiredness, feeling tired all the time
routine: insomnia | insomnia, poor sleep, trouble sleeping
routine: constipation | constipation, being constipated, hard infrequent stools
routine: diarrhea | diarrhea, loose stools, watery stools
routine: heartburn | heartburn, acid reflux, indigestion
routine: nausea | nausea, feeling sick, queasiness
routine: skin rash | a skin rash, a rash, red itchy skin
routine: acne | acne, pimples, worsening acne
routine: wart | a wart, a wart on the finger, a verruca
routine: hay fever | hay fever, sneezing with itchy eyes, seasonal allergies
routine: painful urination | painful urination, burning on passing urine, dysuria
routine: ankle swelling | ankle swelling, swollen ankles, puffy ankles
routine: toothache | toothache, tooth pain, a painful tooth
routine: low mood | low mood, feeling down, feeling depressed
routine: anxiety | anxiety, feeling anxious, constant worry
routine: hair loss | hair loss, thinning hair, losing hair
routine: ingrown toenail | an ingrown toenail, a sore ingrowing nail, an ingrowing toenail
routine: medication refill | a medication refill, a repeat prescription, a prescription renewal
routine: blood pressure check | a blood pressure check, a BP check, a check of blood pressure
"""

COMPLAINTS = {}
for _line in _COMPLAINTS.strip().splitlines():
    _urgency, _rest = _line.split(": ", 1)
    _name, _phrases = _rest.split(" | ")
    COMPLAINTS[_name] = (_urgency, _phrases.split(", "))

# {S} subject ("She"), {P} possessive ("her"), {O} object ("her")
RED_FLAGS = [
    "{S} is confused and drowsy.", "{S} collapsed on arrival.", "Lips look blue.",
    "{S} cannot speak in full sentences.", "Oxygen saturation is 84 percent.",
    "Systolic pressure is below 80.", "Skin is cold and clammy.",
    "{S} is hard to wake.", "Red flag: stiff neck with confusion.",
    "Breathing is very laboured.", "{S} lost all feeling in both legs.",
    "Pulse is weak and over 150.",
]
AMBER_FLAGS = [
    "Temperature is 39.4.", "{S} cannot keep fluids down.", "Pain is 8 out of 10.",
    "Pain is 9 out of 10.", "It is getting rapidly worse.", "{S} is immunosuppressed.",
    "{S} cannot bear weight.", "Heart rate is 118.", "{S} is on chemotherapy.",
    "There is spreading redness.", "{S} could not sleep because of the pain.",
    "{S} has had rigors.",
]
CALM_REMARKS = [
    "Temperature is 36.8.", "{S} is alert and talking.", "Pain is 2 out of 10.",
    "Pain is 3 out of 10.", "{S} denies confusion.", "No rigors.",
    "{S} walked in unaided.", "Heart rate is 72.", "Oxygen saturation is 98 percent.",
    "{S} is steady on the feet.", "Eating and drinking normally.", "Skin is warm and dry.",
    "No stiff neck.", "Looks well.", "Vital signs are normal.", "It is not getting worse.",
    "Blood pressure is 128 over 76.", "{S} is able to bear weight.",
]
HISTORIES = [
    "asthma", "type 2 diabetes", "hypertension", "migraine", "eczema", "gout",
    "osteoarthritis", "COPD", "atrial fibrillation", "hypothyroidism", "epilepsy",
    "depression", "kidney stones", "coeliac disease", "anaemia", "reflux disease",
]
OPERATIONS = [
    "had an appendectomy", "had a knee replaced", "had gallbladder surgery",
    "broke an arm", "had a caesarean", "had cataract surgery", "had a hernia repaired",
]
SOCIAL = [
    "Works as a teacher.", "Lives alone.", "Smokes ten a day.", "Does not smoke.",
    "Drinks socially.", "Retired bus driver.", "Lives with family.", "Works nights.",
    "Came with a neighbour.", "Prefers morning appointments.", "Works in a bakery.",
    "Recently moved here.", "Rides a bike to work.", "Lives on the third floor.",
]
FIRST_NAMES = {
    "f": """Maria Anna Sofia Fatima Chen Aisha Linda Grace Olga Emma Nora Ruth Priya Elena
        Hannah Julia Karen Leila Mina Tanya Yuki Zara Irene Clara Judith Amara""".split(),
    "m": """John Ahmed Carlos David Ivan James Kofi Luis Marco Noah Omar Peter Ravi Samuel
        Tom Viktor Walter Yusuf Adam Bruno Daniel Erik Felix George Hugo Jonas""".split(),
}
TRAIN_SURNAMES = """Lopez Smith Garcia Novak Okafor Tanaka Müller Rossi Kim Silva Jensen
    Kowalski Dubois Haddad Singh Brown Costa Petrov Nguyen Larsen Moreau Weber Khan Ortiz
    Walker Hughes Ferreira Yilmaz Bauer Kelly Romano Lindgren Santos Murphy Horvat Ali
    Schmidt Evans Marino Popescu Berg Castillo Osei Fischer Reid Vargas Laine Dias""".split()
HELD_OUT_SURNAMES = """Abara Winter Delgado Sorensen Ito Marchetti Boyd Farouk Lindqvist
    Pereira Zielinski Bennett Acosta Mbeki Hartmann Rahman Fontaine Quigley Sato Virtanen
    Corrigan Esposito Nakamura Thorne""".split()
OTHER_ALLERGENS = ["latex", "peanuts", "shellfish", "eggs", "bee stings", "strawberries", "iodine"]
RELATIVES = ["Mother", "Father", "Sister", "Brother", "Daughter", "Son", "Husband", "Wife"]
FREQUENCIES = ["once daily", "twice daily", "daily", "at night", "every morning", "BD", "OD",
               "three times a day", "as needed", "with meals"]
WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
NUMBER_WORDS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven",
                8: "eight", 9: "nine", 10: "ten"}
NAMED_MOMENTS = {
    "this morning": ["since this morning", "from this morning", "starting this morning"],
    "last night": ["since last night", "from last night", "starting last night"],
    "yesterday": ["since yesterday", "from yesterday", "starting yesterday"],
    "just now": ["that began just now", "starting minutes before arrival", "as of just now"],
    "today": ["since earlier today", "starting today", "from today"],
    "last week": ["since last week", "starting last week", "from some time last week"],
    "last month": ["since last month", "starting last month", "from some time last month"],
}
LOOSE_DOSES = ["5 mg", "10 mg", "15 mg", "20 mg", "25 mg", "30 mg", "40 mg", "50 mg", "60 mg",
               "75 mg", "80 mg", "90 mg", "100 mg", "120 mg", "150 mg", "200 mg", "250 mg",
               "300 mg", "400 mg", "450 mg", "500 mg", "50 mcg", "100 mcg", "2.5 mg", "1.25 mg"]


def is_reserved(complaint, drug):
    """Whether this (complaint, drug) pair is kept for the held-out set."""
    return zlib.crc32(f"{complaint}|{drug}".encode()) % RESERVED_SHARE == 0


def pairs_of(facts):
    """The (complaint, drug) pairs of a note: current drugs and own allergy."""
    drugs = [name for name, _ in facts["medication"] or []]
    if facts["allergy"] in FORMULARY:
        drugs.append(facts["allergy"])
    return [(facts["complaint"], drug) for drug in drugs]


def invented_name(rng):
    """A name no drug has: it can only be copied, letter group by letter group."""
    while True:
        middles = "".join(rng.choice(NAME_MIDDLES) for _ in range(rng.choice([0, 1, 1, 2])))
        name = rng.choice(NAME_STARTS) + middles + rng.choice(NAME_ENDS)
        if name not in FORMULARY and name not in UNSEEN and len(name) > 4:
            return name


class NoteWriter:
    """Draws the facts of one patient and writes them as a note.

    `choose_drug` gives a drug name; it decides whether the note speaks of the
    formulary, of invented names, or of the unseen drugs.
    """

    def __init__(self, rng, surnames, choose_drug):
        self.rng = rng
        self.surnames = surnames
        self.choose_drug = choose_drug

    def note(self):
        """Returns (note text, fields, facts)."""
        facts = self._facts()
        fields = self._fields(facts)
        return self._text(facts), fields, facts

    # Facts

    def _facts(self):
        rng = self.rng
        used = set()

        def drug():
            while True:
                name = self.choose_drug(rng)
                if name not in used:
                    used.add(name)
                    return name

        def dosed():
            name = drug()
            if rng.random() < 0.08:
                return name, None
            usual = FORMULARY.get(name)
            if usual is None or rng.random() < 0.15:
                return name, rng.choice(LOOSE_DOSES)
            return name, rng.choice(usual)

        kind = rng.random()
        if kind < 0.05:
            medication = None
        elif kind < 0.15:
            medication = []
        else:
            medication = [dosed() for _ in range(rng.choice([1, 1, 2]))]

        kind = rng.random()
        if kind < 0.06:
            allergy = None
        elif kind < 0.34:
            allergy = "none known"
        elif kind < 0.44:
            allergy = rng.choice(OTHER_ALLERGENS)
        else:
            allergy = drug()

        complaint = rng.choice(list(COMPLAINTS))
        flag = rng.choices(["red", "amber", "calm", None], [0.12, 0.25, 0.4, 0.23])[0]
        urgency = COMPLAINTS[complaint][0]
        if flag == "red":
            urgency = "emergent"
        elif flag == "amber" and urgency == "routine":
            urgency = "urgent"

        return {
            "complaint": complaint,
            "onset": self._onset(),
            "medication": medication,
            "allergy": allergy,
            "urgency": urgency,
            "flag": flag,
            "stopped": drug() if rng.random() < 0.22 else None,
            "relative_allergy": drug() if rng.random() < 0.18 else None,
            "sex": rng.choice("fm"),
            "age": rng.randint(18, 94),
        }

    def _onset(self):
        """Returns (canonical onset, phrase) or None."""
        rng = self.rng
        kind = rng.random()
        if kind < 0.05:
            return None
        if kind < 0.25:
            moment = rng.choice(list(NAMED_MOMENTS))
            return moment, rng.choice(NAMED_MOMENTS[moment])
        if kind < 0.35:
            day = rng.choice(WEEKDAYS)
            return day, rng.choice(["since {}", "starting on {}", "from {}"]).format(day)
        unit = rng.choice(["hour", "day", "day", "week", "week", "month", "minute", "year"])
        if unit == "minute":
            count = rng.choice([10, 15, 20, 30, 40, 45, 50])
        else:
            count = rng.randint(1, {"hour": 23, "day": 14, "week": 8, "month": 11, "year": 6}[unit])
        units = unit if count == 1 else unit + "s"
        written = str(count)
        if count in NUMBER_WORDS and rng.random() < 0.45:
            written = NUMBER_WORDS[count]
            if count == 1 and rng.random() < 0.6:
                written = "an" if unit == "hour" else "a"
            elif count == 2 and rng.random() < 0.3:
                written = "a couple of"
        phrase = rng.choice([
            "for {n} {u}", "for the past {n} {u}", "that started {n} {u} ago", "for about {n} {u}",
            "which began {n} {u} ago", "over the last {n} {u}", "starting {n} {u} ago",
        ])
        if written == str(count) and rng.random() < 0.12:
            phrase = "x{n} {u}"
        return f"{count} {units} ago", phrase.format(n=written, u=units)

    @staticmethod
    def _fields(facts):
        if facts["medication"] is None:
            medication = "not recorded"
        elif not facts["medication"]:
            medication = "none"
        else:
            medication = ", ".join(
                name if dose is None else f"{name} {dose}" for name, dose in facts["medication"]
            )
        return {
            "complaint": facts["complaint"],
            "onset": facts["onset"][0] if facts["onset"] else "not recorded",
            "medication": medication,
            "allergy": facts["allergy"] or "not recorded",
            "urgency": facts["urgency"],
        }

    # Writing

    def _text(self, facts):
        rng = self.rng
        style = rng.choices(["story", "terse", "sections", "voice"], [0.45, 0.2, 0.2, 0.15])[0]
        if style == "voice":
            person = {"S": "I", "P": "my", "O": "me", "voice": True}
        elif facts["sex"] == "f":
            person = {"S": "She", "P": "her", "O": "her", "voice": False}
        else:
            person = {"S": "He", "P": "his", "O": "him", "voice": False}
        phrase = rng.choice(COMPLAINTS[facts["complaint"]][1])
        if rng.random() < 0.1 and len(phrase) > 8:
            phrase = self._typo(phrase)
        onset = facts["onset"][1] if facts["onset"] else ""
        name = f"{rng.choice(FIRST_NAMES[facts['sex']])} {rng.choice(self.surnames)}"

        if style == "sections":
            return self._sections(facts, person, phrase, name)

        opening = self._opening(facts, style, phrase, onset, name)
        body = []
        medication = self._medication(facts["medication"], style, person)
        if medication:
            body.append(medication)
        allergy = self._allergy(facts["allergy"], style, person)
        if allergy:
            body.append(allergy)
        body += self._remarks(facts, person, style)
        rng.shuffle(body)
        # Now and then the complaint is not what the note begins with.
        if style == "story" and rng.random() < 0.1:
            body.insert(1, opening)
        else:
            body.insert(0, opening)
        text = " ".join(body)
        if rng.random() < 0.06:
            text = text.replace(". ", ".\n")
        return text

    def _opening(self, facts, style, phrase, onset, name):
        rng = self.rng
        complaint = f"{phrase} {onset}".strip()
        age, sex = facts["age"], facts["sex"]
        if style == "terse":
            bare = phrase.removeprefix("a ").removeprefix("an ").removeprefix("the ")
            start = rng.choice([f"{age}{sex.upper()}", f"{age} yo {sex.upper()}", f"{name}, {age}{sex.upper()}"])
            verb = rng.choice(["c/o", "with", "presents:", "CC:"])
            return f"{start} {verb} {bare} {onset}".strip() + "."
        if style == "voice":
            start = rng.choice([
                "I am here because of", "I came in for", "I have been dealing with",
                "My problem is", "I need help with", f"My name is {name} and I have",
            ])
            return f"{start} {complaint}."
        noun = {"f": ["woman", "female", "lady"], "m": ["man", "male", "gentleman"]}[sex]
        who = rng.choice([
            f"{name}, {age}, ", f"{name} is a {age}-year-old {rng.choice(noun)} who ",
            f"{name} ", f"{age}-year-old {rng.choice(noun)} ", f"Patient {name}, aged {age}, ",
            "Patient ", f"This {age} year old {rng.choice(noun)} ",
        ])
        verb = rng.choice([
            "presents with", "reports", "complains of", "comes in with", "was seen for",
            "attends because of", "describes", "is here with",
        ])
        if onset and rng.random() < 0.12:
            lead = onset[0].upper() + onset[1:] if not onset.startswith(("that", "which", "x")) else None
            if lead:
                return f"{lead}, {who[0].lower() + who[1:] if who.startswith(('Patient', 'This')) else who}{verb} {phrase}."
        return f"{who}{verb} {complaint}."

    def _dose_text(self, name, dose, frequency):
        rng = self.rng
        text = name
        if dose:
            amount, unit = dose.split(" ")
            if rng.random() < 0.15:
                dose = amount + unit
            elif rng.random() < 0.1:
                dose = f"{amount} {'milligrams' if unit == 'mg' else 'micrograms'}"
            text += f" {dose}"
        if frequency:
            text += f" {frequency}"
        return text

    def _drug_list(self, medication, joiners):
        rng = self.rng
        items = [
            self._dose_text(name, dose, rng.choice(FREQUENCIES) if rng.random() < 0.5 else "")
            for name, dose in medication
        ]
        return rng.choice(joiners).join(items)

    def _medication(self, medication, style, person):
        rng = self.rng
        if medication is None:
            return ""
        if not medication:
            return rng.choice({
                "terse": ["Meds: none.", "No meds.", "Nil regular meds."],
                "voice": ["I take no medicines.", "I am not on any tablets.", "I do not take anything."],
            }.get(style, ["Takes no regular medication.", "Not on any medication.",
                          "No current medicines.", "{S} takes nothing regularly."])).format(**person)
        joined = self._drug_list(medication, [" and ", ", ", ", also "])
        if style == "terse":
            return rng.choice(["Meds: {}.", "On {}.", "Rx: {}.", "Meds - {}."]).format(joined)
        if style == "voice":
            return rng.choice(["I take {}.", "I am on {}.", "My tablets are {}.",
                               "My doctor has me on {}."]).format(joined)
        if rng.random() < 0.05:
            return joined[0].upper() + joined[1:] + " is taken at home."
        sentence = rng.choice([
            "Takes {}.", "Current medication is {}.", "{S} takes {}.", "Is on {}.",
            "Regular medicines: {}.", "{S} is currently taking {}.", "{S} was started on {}.",
            "Medication: {}.",
        ])
        return sentence.replace("{S}", person["S"]).replace("{}", joined)

    def _allergy(self, allergy, style, person):
        rng = self.rng
        if allergy is None:
            return ""
        if allergy == "none known":
            return rng.choice({
                "terse": ["NKDA.", "Allergies: none.", "No known allergies."],
                "voice": ["I have no allergies.", "I am not allergic to anything."],
            }.get(style, ["No known allergies.", "No known drug allergies.", "{S} denies allergies.",
                          "Has no allergies.", "Not allergic to anything."])).format(**person)
        if style == "terse":
            sentence = rng.choice(["Allergies: {}.", "Allergic to {}.", "Allergy {} (rash).", "Allergy: {}."])
        elif style == "voice":
            sentence = rng.choice(["I am allergic to {}.", "I get a rash from {}.",
                                   "I had a bad reaction to {}.", "I cannot have {}, it makes me swell."])
        else:
            sentence = rng.choice([
                "Allergic to {}.", "{S} is allergic to {}.", "Allergy to {} with a rash.",
                "{S} had anaphylaxis to {}.", "Known allergy: {}.", "Reacts to {} with hives.",
                "Allergies: {}.", "{S} came out in a rash after {}.",
            ])
        return sentence.replace("{S}", person["S"]).replace("{}", allergy)

    def _remarks(self, facts, person, style):
        rng = self.rng
        remarks = []
        if facts["flag"]:
            table = {"red": RED_FLAGS, "amber": AMBER_FLAGS, "calm": CALM_REMARKS}[facts["flag"]]
            # Flags are what the nurse saw, in whatever voice the rest is.
            seen = {"f": "She", "m": "He"}[facts["sex"]]
            remarks.append(rng.choice(table).format(S=seen))
        if facts["flag"] in ("red", "amber") and rng.random() < 0.2:
            remarks.append(rng.choice(SOCIAL))
        if facts["stopped"]:
            drug = facts["stopped"]
            remarks.append(rng.choice([
                f"Stopped {drug} last year.", f"No longer takes {drug}.", f"Used to take {drug}.",
                f"{drug.capitalize()} was stopped in March.", f"Came off {drug} two months ago.",
                f"Previously on {drug}.", f"Discontinued {drug} because of nausea.",
            ]))
        if facts["relative_allergy"]:
            drug = facts["relative_allergy"]
            remarks.append(rng.choice([
                f"{rng.choice(RELATIVES)} is allergic to {drug}.",
                f"{rng.choice(RELATIVES)} had a reaction to {drug}.",
                f"Family history: {rng.choice(RELATIVES).lower()} allergic to {drug}.",
            ]))
        if rng.random() < 0.35:
            history = rng.choice(HISTORIES)
            remarks.append(rng.choice([
                f"History of {history}.", f"Known {history}.", f"PMH: {history}.",
                f"Has had {history} for {rng.randint(2, 30)} years.",
            ]))
        if rng.random() < 0.15:
            remarks.append(f"{rng.choice(['Previously', 'Once'])} {rng.choice(OPERATIONS)} {rng.randint(2, 25)} years ago.")
        if rng.random() < 0.25:
            remarks.append(rng.choice(SOCIAL))
        return remarks

    def _sections(self, facts, person, phrase, name):
        rng = self.rng
        lines = []
        if rng.random() < 0.7:
            lines.append(rng.choice([
                f"Patient: {name}, {facts['age']}", f"Name: {name}\nAge: {facts['age']}", f"Pt {name}",
            ]))
        middle = [rng.choice(["Reason for visit", "Complaint", "Presenting complaint", "Problem"]) + f": {phrase}"]
        if facts["onset"]:
            onset = facts["onset"][1]
            if rng.random() < 0.5:
                middle[0] += f" {onset}"
            else:
                middle.append(rng.choice(["Onset", "Duration", "Started"]) + f": {onset}")
        if facts["medication"] is not None:
            listed = self._drug_list(facts["medication"], [", ", "; ", " + "]) if facts["medication"] else rng.choice(["none", "nil"])
            middle.append(rng.choice(["Medication", "Current meds", "Medicines", "Drugs"]) + f": {listed}")
        if facts["allergy"]:
            allergy = facts["allergy"]
            if allergy == "none known":
                allergy = rng.choice(["none", "none known", "NKDA", "nil"])
            middle.append(rng.choice(["Allergies", "Allergy", "Allergic to"]) + f": {allergy}")
        extra = self._remarks(facts, person, "sections")
        lines += middle
        if extra:
            label = rng.choice(["Notes: ", "Other: ", ""])
            lines.append(label + " ".join(extra))
        return rng.choice(["\n", "\n", ". "]).join(line.rstrip(".") for line in lines) + "."

    def _typo(self, phrase):
        """Swaps two neighbouring letters inside one longer word."""
        words = phrase.split(" ")
        long_words = [i for i, word in enumerate(words) if len(word) > 4]
        if not long_words:
            return phrase
        chosen = self.rng.choice(long_words)
        word = words[chosen]
        at = self.rng.randint(1, len(word) - 3)
        words[chosen] = word[:at] + word[at + 1] + word[at] + word[at + 2:]
        return " ".join(words)


_FORMULARY_NAMES = list(FORMULARY)


def formulary_drug(rng):
    return rng.choice(_FORMULARY_NAMES)


def training_drug(rng):
    return invented_name(rng) if rng.random() < 0.2 else formulary_drug(rng)


def unseen_drug(rng):
    return rng.choice(UNSEEN)


def capitalise_drugs(note, facts):
    """The note with its current drugs and the allergy written with a capital."""
    names = [name for name, _ in facts["medication"] or []]
    for name in names + [facts["allergy"]]:
        if name in FORMULARY:
            note = re.sub(rf"\b{name}\b", name.capitalize(), note)
    return note


def training_notes(count, seed):
    """`count` notes without any reserved pair: a list of (note, fields).

    People write drug names with a capital more often than sentences begin with
    one, and each capital form is a token of its own that has to be learnt.
    """
    rng = random.Random(seed)
    capital_rng = random.Random(seed)
    writer = NoteWriter(rng, TRAIN_SURNAMES, training_drug)
    notes = []
    while len(notes) < count:
        note, fields, facts = writer.note()
        if not any(is_reserved(*pair) for pair in pairs_of(facts)):
            if capital_rng.random() < CAPITAL_SHARE:
                note = capitalise_drugs(note, facts)
            notes.append((note, fields))
    return notes


def held_out_notes(count, seed):
    """`count` notes that each have at least one reserved pair."""
    writer = NoteWriter(random.Random(seed), HELD_OUT_SURNAMES, formulary_drug)
    notes = []
    while len(notes) < count:
        note, fields, facts = writer.note()
        if any(is_reserved(*pair) for pair in pairs_of(facts)):
            notes.append((note, fields))
    return notes


def unseen_drug_notes(count, seed):
    """`count` notes that all name a current drug or an allergy of `UNSEEN`."""
    writer = NoteWriter(random.Random(seed), HELD_OUT_SURNAMES, unseen_drug)
    notes = []
    while len(notes) < count:
        note, fields, facts = writer.note()
        if facts["medication"] or facts["allergy"] in UNSEEN:
            notes.append((note, fields))
    return notes


def answer_text(fields):
    """The summary as the model writes it."""
    return "\n".join(f"{field}: {fields[field]}" for field in FIELDS)


def parse_answer(text):
    """The fields of a summary; lines that are no field are left out."""
    fields = {}
    for line in text.strip().splitlines():
        field, separator, value = line.partition(": ")
        if separator and field in FIELDS:
            fields[field] = value.strip()
    return fields


def check_disjoint(training, held_out):
    """Asserts that no held-out note and no held-out patient occurs in training."""
    seen = {note for note, _ in training}
    surnames = set(HELD_OUT_SURNAMES)
    assert not surnames & set(TRAIN_SURNAMES)
    assert not any(note in seen for note, _ in held_out)
    assert not any(name in note.split() for note in seen for name in surnames)

    def pairs(notes):
        found = set()
        for _, fields in notes:
            drugs = [item.split(" ")[0] for item in fields["medication"].split(", ")]
            for drug in drugs + [fields["allergy"]]:
                if drug in FORMULARY:
                    found.add((fields["complaint"], drug))
        return found

    shared = {pair for pair in pairs(training) if is_reserved(*pair)}
    assert not shared, f"reserved pairs in training: {sorted(shared)[:5]}"
    trained = pairs(training)
    for _, fields in held_out:
        assert pairs([("", fields)]) - trained, "a held-out note without an unseen pair"


def main():
    parser = argparse.ArgumentParser(description="Writes the two held-out sets and checks them.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--check-against", type=int, default=50_000, help="training notes to compare with")
    arguments = parser.parse_args()
    held_out = held_out_notes(500, seed=1_000_001)
    unseen = unseen_drug_notes(300, seed=1_000_002)
    check_disjoint(training_notes(arguments.check_against, seed=0), held_out)
    for file_name, notes in (("held-out.jsonl", held_out), ("held-out-unseen-drugs.jsonl", unseen)):
        with open(arguments.out / file_name, "w", encoding="utf-8") as file:
            for note, fields in notes:
                file.write(json.dumps({"note": note, "fields": fields}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
