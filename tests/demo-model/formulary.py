"""Drug names and usual doses of the demonstration model.

`FORMULARY` is what the model is trained on; each of its names is one token.
`UNSEEN` never occurs in training and is spelt by several tokens: it measures
how far copying carries beyond the formulary.
"""

# name: usual doses, as "amount unit"
_FORMULARY_TABLE = """
metformin 500 mg|850 mg|1000 mg
lisinopril 5 mg|10 mg|20 mg
amlodipine 5 mg|10 mg
atorvastatin 10 mg|20 mg|40 mg|80 mg
simvastatin 10 mg|20 mg|40 mg
pravastatin 20 mg|40 mg
losartan 25 mg|50 mg|100 mg
valsartan 80 mg|160 mg
candesartan 4 mg|8 mg|16 mg
irbesartan 75 mg|150 mg|300 mg
ramipril 2.5 mg|5 mg|10 mg
enalapril 5 mg|10 mg|20 mg
perindopril 2 mg|4 mg|8 mg
captopril 12.5 mg|25 mg|50 mg
metoprolol 25 mg|50 mg|100 mg
atenolol 25 mg|50 mg|100 mg
bisoprolol 2.5 mg|5 mg|10 mg
propranolol 10 mg|40 mg|80 mg
carvedilol 6.25 mg|12.5 mg|25 mg
sotalol 80 mg|160 mg
diltiazem 60 mg|120 mg|180 mg
verapamil 80 mg|120 mg|240 mg
nifedipine 30 mg|60 mg
felodipine 5 mg|10 mg
furosemide 20 mg|40 mg|80 mg
bumetanide 1 mg|2 mg
torsemide 10 mg|20 mg
spironolactone 25 mg|50 mg|100 mg
eplerenone 25 mg|50 mg
hydrochlorothiazide 12.5 mg|25 mg
chlorthalidone 12.5 mg|25 mg
indapamide 1.5 mg|2.5 mg
warfarin 1 mg|3 mg|5 mg
apixaban 2.5 mg|5 mg
rivaroxaban 10 mg|15 mg|20 mg
dabigatran 110 mg|150 mg
edoxaban 30 mg|60 mg
clopidogrel 75 mg
ticagrelor 60 mg|90 mg
aspirin 75 mg|81 mg|300 mg|325 mg
digoxin 62.5 mcg|125 mcg|250 mcg
amiodarone 100 mg|200 mg
flecainide 50 mg|100 mg
hydralazine 25 mg|50 mg
doxazosin 1 mg|4 mg|8 mg
tamsulosin 400 mcg
finasteride 5 mg
isosorbide 30 mg|60 mg
nitroglycerin 300 mcg|400 mcg
ezetimibe 10 mg
fenofibrate 67 mg|160 mg|200 mg
gliclazide 40 mg|80 mg|160 mg
glipizide 5 mg|10 mg
glimepiride 1 mg|2 mg|4 mg
sitagliptin 25 mg|50 mg|100 mg
linagliptin 5 mg
empagliflozin 10 mg|25 mg
dapagliflozin 5 mg|10 mg
pioglitazone 15 mg|30 mg|45 mg
levothyroxine 25 mcg|50 mcg|75 mcg|100 mcg|125 mcg
liothyronine 5 mcg|20 mcg
carbimazole 5 mg|20 mg
methimazole 5 mg|10 mg
prednisone 5 mg|10 mg|20 mg|40 mg
prednisolone 5 mg|25 mg|30 mg
dexamethasone 2 mg|4 mg|8 mg
hydrocortisone 10 mg|20 mg
fludrocortisone 50 mcg|100 mcg
alendronate 10 mg|70 mg
risedronate 5 mg|35 mg
omeprazole 10 mg|20 mg|40 mg
esomeprazole 20 mg|40 mg
lansoprazole 15 mg|30 mg
pantoprazole 20 mg|40 mg
famotidine 20 mg|40 mg
ondansetron 4 mg|8 mg
metoclopramide 10 mg
domperidone 10 mg
loperamide 2 mg
mesalazine 800 mg|1200 mg
sulfasalazine 500 mg|1000 mg
azathioprine 50 mg|100 mg
methotrexate 7.5 mg|10 mg|15 mg|20 mg
hydroxychloroquine 200 mg|400 mg
leflunomide 10 mg|20 mg
allopurinol 100 mg|200 mg|300 mg
febuxostat 80 mg|120 mg
colchicine 500 mcg|600 mcg
ibuprofen 200 mg|400 mg|600 mg|800 mg
naproxen 250 mg|375 mg|500 mg
diclofenac 25 mg|50 mg|75 mg
meloxicam 7.5 mg|15 mg
celecoxib 100 mg|200 mg
ketorolac 10 mg
paracetamol 500 mg|1000 mg
acetaminophen 325 mg|500 mg|650 mg
codeine 15 mg|30 mg|60 mg
tramadol 50 mg|100 mg
morphine 5 mg|10 mg|30 mg
oxycodone 5 mg|10 mg|20 mg
hydromorphone 2 mg|4 mg
buprenorphine 2 mg|8 mg
naltrexone 50 mg
gabapentin 100 mg|300 mg|600 mg
pregabalin 25 mg|75 mg|150 mg
amitriptyline 10 mg|25 mg|50 mg
nortriptyline 10 mg|25 mg|50 mg
duloxetine 30 mg|60 mg
venlafaxine 37.5 mg|75 mg|150 mg
sertraline 25 mg|50 mg|100 mg
fluoxetine 10 mg|20 mg|40 mg
citalopram 10 mg|20 mg|40 mg
escitalopram 5 mg|10 mg|20 mg
paroxetine 10 mg|20 mg|30 mg
mirtazapine 15 mg|30 mg|45 mg
bupropion 150 mg|300 mg
trazodone 50 mg|100 mg|150 mg
lithium 300 mg|400 mg|600 mg
quetiapine 25 mg|100 mg|200 mg
olanzapine 2.5 mg|5 mg|10 mg
risperidone 1 mg|2 mg|4 mg
aripiprazole 5 mg|10 mg|15 mg
haloperidol 1 mg|2 mg|5 mg
clozapine 25 mg|100 mg|200 mg
diazepam 2 mg|5 mg|10 mg
lorazepam 0.5 mg|1 mg|2 mg
clonazepam 0.5 mg|1 mg|2 mg
zolpidem 5 mg|10 mg
zopiclone 3.75 mg|7.5 mg
melatonin 2 mg|3 mg|5 mg
lamotrigine 25 mg|100 mg|200 mg
levetiracetam 250 mg|500 mg|1000 mg
carbamazepine 100 mg|200 mg|400 mg
valproate 200 mg|500 mg
phenytoin 100 mg|300 mg
topiramate 25 mg|50 mg|100 mg
levodopa 100 mg|250 mg
pramipexole 0.5 mg|1 mg
ropinirole 1 mg|2 mg|4 mg
donepezil 5 mg|10 mg
memantine 10 mg|20 mg
baclofen 5 mg|10 mg|20 mg
sumatriptan 50 mg|100 mg
salbutamol 100 mcg|200 mcg
budesonide 100 mcg|200 mcg|400 mcg
fluticasone 50 mcg|125 mcg|250 mcg
tiotropium 18 mcg
montelukast 5 mg|10 mg
theophylline 200 mg|300 mg
cetirizine 5 mg|10 mg
loratadine 10 mg
fexofenadine 120 mg|180 mg
diphenhydramine 25 mg|50 mg
penicillin 250 mg|500 mg
amoxicillin 250 mg|500 mg|875 mg
ampicillin 250 mg|500 mg
flucloxacillin 250 mg|500 mg
cephalexin 250 mg|500 mg
ceftriaxone 1000 mg|2000 mg
doxycycline 50 mg|100 mg
minocycline 50 mg|100 mg
azithromycin 250 mg|500 mg
clarithromycin 250 mg|500 mg
erythromycin 250 mg|500 mg
ciprofloxacin 250 mg|500 mg
levofloxacin 250 mg|500 mg
metronidazole 200 mg|400 mg|500 mg
nitrofurantoin 50 mg|100 mg
trimethoprim 100 mg|200 mg
sulfamethoxazole 400 mg|800 mg
clindamycin 150 mg|300 mg
vancomycin 125 mg|250 mg
linezolid 600 mg
fluconazole 50 mg|150 mg|200 mg
aciclovir 200 mg|400 mg|800 mg
oseltamivir 75 mg
tamoxifen 20 mg
anastrozole 1 mg
letrozole 2.5 mg
"""

FORMULARY = {
    name: doses.split("|")
    for name, doses in (
        line.split(" ", 1) for line in _FORMULARY_TABLE.strip().splitlines()
    )
}

UNSEEN = """
rosuvastatin telmisartan olmesartan labetalol nebivolol lercanidipine ranolazine
ivabradine prasugrel saxagliptin canagliflozin repaglinide acarbose
propylthiouracil ibandronate rabeprazole nizatidine cyclobenzaprine tizanidine
methocarbamol tapentadol vortioxetine clomipramine ziprasidone lurasidone
temazepam alprazolam lacosamide oxcarbazepine rizatriptan galantamine
cefuroxime cefixime moxifloxacin terbinafine valaciclovir tacrolimus
tolterodine solifenacin bicalutamide
""".split()

# Parts of names that belong to no drug: training mixes in names made of them,
# so that the model learns to copy a spelt name and not only to pick a token.
NAME_STARTS = """
ab ac al am ar as ba be bi bo bra bu ca ce cil clo co cri da de di do dra du e
en er es fa fe fi flu fo ga ge gli go gra he hy i in ix ka ke ko la le li lo lu
ma me mi mo na ne ni no ol om os ox pa pe pi pra pro qui ra re ri ro sa se si so
sul ta te ti to tra u ul va ve vi vo xa xe za ze zi zo
""".split()
NAME_MIDDLES = """
ba be bi bu ca ci clo cor da de di do dro fa fe flo flu ga gi glu la le li lo lu
ma me mi mo na ne ni no nu pa pe pi po pra pro ra re ri ro ru sa se si so su ta
te ti to tra tri va ve vi xa xi za ze zo x n l r
""".split()
NAME_ENDS = """
pril olol sartan statin dipine zide prazole tidine gliptin gliflozin glitazone
cillin mycin floxacin cycline azole vir mab nib tinib parin xaban grel oxetine
pramine zepam zolam barbital triptan setron lukast terol onide sone asone
profen oxicam coxib caine curium fibrate dronate tadine rizine ridone peridol
azine pine pam ine in ol one ate ide an um
""".split()
