"""Tests of details/answers.py: what is read in answers; and random texts for all that reads."""

import contextlib
import random
import re
import time

from critique import judgement
from details import data
from details.data import InputError
from reward import is_correct

# reference == responses that are right, reference != responses that are not; ¶ is a new line
ANSWERS = r"""
# Where the answer is: the last box, else behind the last mark.
42 == \boxed{42} | \boxed{41} no, \boxed{42} | \boxed {42} | \boxed¶{42} | \Boxed{42} | \fbox{42}
42 == \boxed{\boxed{42}} | \boxed{a=\boxed{42}} | \boxed{{42}} | \boxed{42}} | $\boxed 42$
42 == \boxed{42 | \boxed{42}. Answer: 41 | $$\boxed{42}$$ | \boxed{42}^{\text{th}} | \boxed{42}\%
42 != \boxed{42} no, \boxed{41} | \boxed{x}, 42 | | no number | 42: 41 | \boxed{41} The answer is 42
42 != \boxed{42} and \boxed{6 | \boxed{42} and $\boxed{\left\{6 \right.}$
42 == #### 42 | #### 42 apples | #### x = 42 | #### **42** | ####¶42 | It is #### 42 | #### $42
42 == #### The answer is 42 of 50 | #### Answer: 42 (of 50) | #### 42, 50 - 8 | #### 42¶¶Q: 7+7?
42 == the answer is 42. | The answer is **42** | Answer: 42 | **Answer:** 42 | ANSWER: 42 | A: 42
42 == The answer is:¶42 | Answer: \[ 42 \] | The answer is¶\[ \boxed{42} \] | <answer>42</answer>
42 == The answer is 42. I checked it in 3 ways. | The answer is 42¶Confidence: 95% | it is 42.
42 == \boxed{42}¶¶This answer is correct. | \boxed{42} The answer is **right**: I checked it.
42 == \boxed{42}. The others are wrong. | \boxed{42}. Tom was wrong.
42 != \boxed{42}. That is wrong. | \boxed{42}. I think this may be incorrect.
42 != \boxed{42}. It's wrong. | \boxed{42}. I've made a mistake. | \boxed{42}, but that's wrong.
42 != \boxed{42}. Hmm that can't be right. | The answer is 42. That's not correct.
42 != \boxed{42}. I think there must be a mistake. | \boxed{42}. That’s wrong.
42 != \boxed{42}. Oh, it's wrong. | \boxed{42}. That isn't right. | \boxed{42}. I made an error.
42 != \boxed{42}. This doesn't seem right. | \boxed{42}. However, this is incorrect.
42 != \boxed{42}¶¶I apologize for the mistake. The correct answer is 41.
42 == \boxed{42}¶¶\boxed{42} | \boxed{\displaystyle 42} ;; -4 == \boxed{‑4} | \boxed{−4}
42 == She has a total of 42 apples. | The number of apples is 42. | Each of them gets 42 apples.
42 != The answer is a third of 42. | The answer is twice as much as 42. | \boxed{x \not= 42}
90 == \boxed{90\degree} | \boxed{90^\circ}
B == The answer is option B. | \boxed{\text{Option B}} | The correct choice is B. | \boxed{B)}
A == \boxed{A)21} | The answer is A)21 ;; B == The answer is (B) False, False.
A != \boxed{(A) (B)} | The answer is (A) or (B). | \boxed{A. 3, B. 4} | The answer is A) B) C) D)
\frac12 != \boxed{\frac12, \frac34} ;; 100 != \boxed{100,\frac1{100}}
2 != \boxed{x=1 \\ y=2} | \boxed{x=1 \text{ if } y=2} ;; 8 == \boxed{5 + 3 = 8}
4 != \boxed{4(3-x)(3+x)} ;; 5 != \boxed{5, 3-\sqrt2} | \boxed{5(1+x)} | \boxed{5,005}
\begin{pmatrix} 1 \\ 2 \\ 3 \end{pmatrix} == \boxed{\begin{pmatrix}1\\2\\3\end{pmatrix}}
\begin{pmatrix} 1 \\ 2 \end{pmatrix} == \boxed{\begin{bmatrix}1\\2\end{bmatrix}}
42 == \boxed{42}. It can be right. | \boxed{42}. It's impossible to get more.
B == \boxed{B}. The rest are incorrect. ;; No == \boxed{No}. The claim is false.
42 == \boxed{42}. The answer is reasonable. | \boxed{42}. The answer is not 41, since both count.
42 == #### 42¶The answer is in dollars. | <answer>42</answer>¶This answer is rounded.
right angle == The answer is right angle.
D == Answer: (D) | Answer: $D$ | D | (D)
So. #### yes == \boxed{yes} | the answer is Yes.
So. #### yes != \boxed{no} | yes
blah <<6*7=42>> #### 42 == #### 42 | \boxed{42}
p - q == The final answer is $p - q$. I hope it is correct.
No. 7 == The final answer is $No. 7$. I hope it is correct.

# References: box, mark and sentence are read in them as well.
so \boxed{5} == \boxed{5} | 5
Then 30 - 12 = 18.¶¶The answer is: 18 == \boxed{18} | The answer is 18.
\fbox{12} == \boxed{12} | 12
\boxed 12 == \boxed{12} | 12
#### 1200 == #### 1,200 miles | \boxed{1200}
It falls from 2 by 6.¶#### -4 == The temperature is now #### -4
\forall x>0, f(x)=0 == \boxed{f(x)=0}
We proceed by induction. The base case is clear. So \boxed{7}. == 7
No solution == \boxed{no solution}

# An `=` is dropped behind a name or a calculation only, relations never.
5 == \boxed{x = 5} | \boxed{x_1=5} | \boxed{f(3)=5} | \boxed{\angle ABC = 5^\circ} | x=5 | = 5
5 == \boxed{a+b=5} | \boxed{\text{Total} = 5} | \boxed{2 + 3 = 5} | \boxed{10 \div 2 = 5}
5 == The answer is 5 = x | The answer is x where x = 5. | \boxed{P(X=2) = a = 5} | \boxed{n==5}
5 != \boxed{x <= 5} | \boxed{x\neq 5} | \boxed{x=\pm 5} | \boxed{x \to 5} | \boxed{x => 5}
5 != \boxed{2x=5} | \boxed{x^2+y^2=5} | \boxed{-x=5} | \boxed{n/2=5} | x >= 5 | \boxed{x \ge= 5}
5 != \boxed{x = 5, y = 3} | \boxed{x = 3, y = 5} | \boxed{x=1 \text{ or } x=5} | #### x=2, y=5
5 != \boxed{(x,y)=(1,5)} | \boxed{\text{Tom}=2, \text{Ann}=5} | \boxed{x=-5,5} | The answer is 5<x<7
3x+4y+14=0 != \boxed{3x-y+13=0} | \boxed{0}
x <= 3 != \boxed{x >= 3} | \boxed{3} | \boxed{x < 3}
x=2, y=3 == \boxed{x = 2, y = 3} | The answer is x = 2 and y = 3.
x=2, y=3 != \boxed{x=7, y=3} | \boxed{3} | \boxed{y=3}
x^2+y^2=9 != \boxed{9} | 9
a+b=12 == \boxed{a + b = 12} ;; a+b=12 != \boxed{12}
x=5 == \boxed{5} | \boxed{x = 5}
\pm 3 == \boxed{x = \pm 3}
y = 2x + 3 == \boxed{y=2x+3} | \boxed{2x+3}
y = 2x + 3 != \boxed{y=3x+3} | \boxed{3}
x \geq 5 == \boxed{x \ge 5} | \boxed{x ≥ 5} | \boxed{x >= 5}
x \leq 5 == \boxed{x \le 5} | The answer is x\le5.

# Thousands: a comma before three digits, in a number but not in a pair, an interval or a set.
1000 == \boxed{1{,}000} | 1,000 | \boxed{1\,000} | \boxed{\text{1,000}} | \boxed{1,\!000} | 1000.00
11,\!222,\!333 == \boxed{11222333} | \boxed{11,222,333} | \boxed{11\,222\,333}
-1234.5 == \boxed{-1,234.5} | \boxed{- \$1,234.50} | It is -$1,234.5.
100 != \boxed{(0,100)} | \boxed{[0,100)} | \boxed{0,100} | The pair is (0,100). | It is (0, 100)
360 != \boxed{[0,360)} | [0,360)
(0,100) == \boxed{(0, 100)} | The answer is $(0,100)$.
(0,100) != \boxed{100} | \boxed{(0,101)} | \boxed{[0,100)}
1200 != \boxed{(1,200)} | \boxed{\{1,200\}} | \boxed{1.200} | \boxed{12,00} | \boxed{1200,0}
(1,200) != \boxed{1200} | \boxed{1,200} | \boxed{(1200)}
(12, 345, 678) == \boxed{(12,345,678)} ;; 5, 100 == \boxed{5,100} ;; 5, 100 != \boxed{5100}
\left[2,5\right) == \boxed{[2, 5)} ;; [2,5) != \boxed{(2,5]}
\{1,2\} == \boxed{\{1, 2\}} | \boxed{\left\{1, 2\right\}}
(0^\circ,180^\circ) == \boxed{(0,180)} ;; (1,2) != \boxed{(2,1)} | \boxed{12}
(x,y)=(1,3) == \boxed{(1,3)} ;; D=(0,1) != \boxed{D=(0,1.5)}

# Matrices keep the ends of their rows; a brace of cases is no end of a box.
\begin{pmatrix} 1 \\ 2 \end{pmatrix} == \boxed{\begin{pmatrix}1\\2\end{pmatrix}}
\left\{ x \right. == $\boxed{\left\{x\right.}$. It has one row.
\begin{pmatrix} 1 \\ 2 \end{pmatrix} != \boxed{\begin{pmatrix}12\end{pmatrix}}
\begin{pmatrix} 1 \\ 2 \end{pmatrix} != \boxed{\begin{pmatrix}1 2\end{pmatrix}}

# Sentences, marked or not, that do not say which number they mean.
5 != The answer is 5 or 6 | The answer is 5x | The answer is 5*2 | The answer is 5^2 | #### 5 or 6
5 != The answer is between 5 and 9. | The answer is not 5. | The answer is either 5 or 6
5 != The answer is at least 5. | The answer is 5 dollars and 20 cents. | Answer: 5 + 6
5 != Answer: 5, 6 | Answer: 5, 6, 7
5 != It is 6 or 5 | It is not 5 | It is between 3 and 5 | It has 5x | It is 5 to 6 | 10-5 | 3 + 5
5 != The answer is 2^5. | So 2^5 | The answer is July 5. | The answer is sqrt 5. | It is (3, 5)
5 != \boxed{5 or 6} | \boxed{5-6} | \boxed{5~6} | \boxed{5 6} | \boxed{5 or more} | \boxed{5:6}
24 != \boxed{24/٠} | \boxed{\frac{24}{०}} | The answer is twice 24. | So it is five times 24.
-3 != \boxed{|-3|} | \boxed{\left|-3\right|} ;; 3 == \boxed{|3|} | |Total|3|
24000 == \boxed{\$24K} | The answer is $24k. ;; 24 != \boxed{\$24K} | The answer is $24K.
2 != The answer is 2^10. | 2^10 ;; 6 == The answer isn't 5, it is 6 ;; 9 != \boxed{9**9**9} | 9**9
#### 2 != #### 2. Add the apples¶7 + 8 = 15¶¶The answer is 15.
15 == #### 2. Add the apples¶7 + 8 = 15 | ##### 1. Add¶7+8=15 | #### Step 1: Add¶7+8=15

# A clause behind the number, words before it.
24 == **Answer**: 24 apples, 6 of them red | **Answer**¶24¶¶(6 are red) | Answer: 24, not 30
24 == ### Final Answer¶24 apples of the 30. | the answer is: $24$ (30 minus 6). | Answer: $24
24 == The answer is that she has 24 apples | The answer is twenty-four (24). | The answer is "24".
24 == The answer is 24, in total, so the shop earns that much. | Final answer is 24, i.e. 30 - 6.
24 == The answer is 24 since 4*6 = 24. | Answer: 24 because she ate 6.
24 != The answer is 24 men, 6 women | The answer is 24, 6, 3 | The answer is $24$ or $25$

# Several boxes and several values: in any order, with any word or brackets of a set, or with \pm.
-1, -9 == \boxed{-1} and \boxed{-9} | \boxed{-9},\ \boxed{-1} | \boxed{\{-9,-1\}} | \boxed{-9; -1}
-1, -9 == $x=\boxed{-9}$ or $x=\boxed{-1}$ | \boxed{x_1=-1, x_2=-9} | \boxed{x=-1 \text{ or } -9}
-1, -9 != \boxed{-1} | \boxed{-1, -9, 3} | \boxed{(-1,-9)} ;; 3,-3 == \boxed{\pm 3}
15 == \boxed{12}, but it is \boxed{15} | \boxed{\frac{30}{2}}, that is \boxed{15}
15 != Either \boxed{12} or \boxed{15} | \boxed{12}\boxed{15} | \boxed{12} (or \boxed{15})
0.01, 100 == \boxed{100, \frac{1}{100}} ;; (1,2),(3,4) == \boxed{(3,4) \text{ and } (1,2)}
(1,2),(3,4) != \boxed{(2,1),(3,4)} ;; x=2, y=3 != \boxed{x=3, y=2} | \boxed{3, 2}

# Inequalities are intervals.
(-\infty,3) == \boxed{x<3} | \boxed{3>x} ;; (-\infty,3) != \boxed{x>3} | \boxed{x\le3}
[2,5) == \boxed{2\le x<5} | \boxed{x\in[2,5)}
(2,5] == \boxed{2<x\le 5} ;; 3<x == \boxed{(3,\infty)}
(-\infty,-1)\cup(3,\infty) == \boxed{x<-1 \text{ or } x>3} | \boxed{(3,\infty) U (-\infty,-1)}

# Denied, taken back, hedged.
24 != The answer isn't 24. | It cannot be 24. | I doubt that it is 24.
24 != So x = 24 is not a solution. | \boxed{24}. That is wrong
24 != \boxed{24}? No. | It is not \boxed{24}. | \boxed{24 \text{ is wrong}}
24 != \boxed{24}. Correction: it is 25 | The answer is 24? No.
24 != \boxed{24} or more | \boxed{24}, which is wrong
24 != The answer is 24, no, 25. | The answer is 24, which is wrong. | The answer is 24, perhaps 25.
24 != The answer is 24 (and 25). | Answer: 24 at most | \boxed{24 \text{ minimum}}
24 != Answer: at least 24
24 != The answer is less than 24. | The answer is 24 less than the total.
24 != Answer: 24 (25 with both)
24 == It is not prime, so the answer is \boxed{24}. | The answer is 23, no, 24.
24 == \boxed{24}. I hope it is not wrong.
24 != 20 workers make 720 parts in 24 hours. | The values are n = 5 and n = 24.
24 == If she sells 5 of 29, 29-5=24 eggs are left. | Dividing by 2, we get X = $24.

# The name left of `=`, the unit and the case of symbols must not contradict the reference.
y=3 != \boxed{x=3} ;; \angle B=30 != \boxed{\angle A=30}
x_1=3 != \boxed{x_2=3} ;; k=3 == \boxed{k_m=3}
24 == \boxed{|r-s|=24} | \boxed{4!=24} | \boxed{\sum_{k=1}^{n} k=24} ;; 24 != \boxed{x^2=24}
5\text{ hours} == \boxed{5 hrs} | \boxed{5} ;; 5 m == \boxed{5 meters} ;; 5 m != \boxed{5 mm}
5 meters != \boxed{5 mm} | \boxed{5 cubic meters} ;; 5 cubic feet != \boxed{5 cubic inches}
5\text{ cm}^3 == \boxed{5 cubic centimeters} | \boxed{5 cu. cm}
5 metres == \boxed{5 meters} ;; 5\text{ hours} != \boxed{5 minutes} ;; 3 AM != \boxed{3 PM}
5 \text{ cents} != \boxed{\$5} | \boxed{5 dollars} ;; \$5 == \boxed{5 dollars}
5\text{ cm}^2 != \boxed{5\text{ cm}^3} | \boxed{5 cm}
5\text{ cm}^2 == \boxed{5 square centimeters}
8\sqrt{3} == \boxed{8\sqrt3\text{ cm}} ;; \sqrt3 != \boxed{\sqrt3 \text{ is wrong}}
\frac{m}{M} != \boxed{\frac{M}{m}} ;; mg != \boxed{Mg} ;; \omega != \boxed{\Omega}
No == \boxed{no}
50\% == \boxed{0.5} | \boxed{50} ;; 50\% != \boxed{5} ;; \$5 != \boxed{5\%} ;; 50 != \boxed{0.5}

# Over six decimals are noise of floating point.
3244047.0999999996 == \boxed{3244047.1} ;; 3244047.0999999996 != \boxed{3244051}
0.3333333 == \boxed{1/3} ;; 0.333333 != \boxed{1/3} ;; 3244047.1 != \boxed{3244047.0999999996}

# Units and currencies.
15 == \boxed{15 cm^2} | It is 15 m^2. | The area is $15\text{ cm}^2$. | \boxed{15\text{ m/s}^2}
15 == The answer is 15 square meters (m^2). | \boxed{15 sq. ft.} | \boxed{15\ cm^{2}} | It is 15 m².
15 == \boxed{15 s} | \boxed{15kg} | \boxed{15^\circ} | \boxed{15°C} | \boxed{15 percent} | 15\%
15 == \boxed{15 apples (total)} | \boxed{15'} | \boxed{15th} | \boxed{15 руб.} | \boxed{15.} | 15!
15 == \boxed{€15} | \boxed{HK$15} | \boxed{Rs. 15} | \boxed{US\$ 15.00} | \boxed{15 USD} | £15
m^2 != \boxed{2} | \boxed{s^2} ;; 2 != \boxed{m^2} ;; h^3 != \boxed{3} ;; m^{2} == \boxed{m^2}
15 != \boxed{15 x} | \boxed{15n} | \boxed{15!} | \boxed{15\pi} | \boxed{15 squared} | \boxed{15 pi}
0.5 == \boxed{50\%} ;; 50 == \boxed{50\%} | 50% ;; 12.5 != \boxed{12 hours 30 minutes}

# Words for numbers.
2000000 == \boxed{2 million} | It earned $2 million in total.
2 != \boxed{2 million} | So 2 million. | \boxed{2 tenths} | \boxed{2 lakh}
2 != \boxed{2億} | \boxed{2 bn}
3 != The answer is 3 and two thirds. | \boxed{3\text{ and three quarters}}
3 != The answer is 3 doubled. | The answer is 3 divided by four. | #### 3 dollars and fifty cents
3, 3, 4 != \boxed{3, 4, 4} | \boxed{3, 4} ;; 3, 3, 4 == \boxed{4, 3, 3} ;; 2 == \boxed{2, 2}
2 != \boxed{2 quadrillion} | \boxed{2 sevenths} | \boxed{2 halves} ;; 0.2 == \boxed{2 tenths}
1500000000 == \boxed{1.5 \text{ billion}} ;; 500 == \boxed{5 hundred} ;; 30000 == \boxed{3万}
-5 == The answer is minus 5. | \boxed{negative 5} ;; 5 != \boxed{minus 5} | \boxed{-{5}} | —5

# Signs.
-5 == \boxed{-{5}} | \boxed{- \, 5} | −5 | -$5 | $-5 | \boxed{(-5)} | \boxed{-5°C} | It is −5.
-5 != 10-5 | 5 | \boxed{+5}
-7/2 == \boxed{-\frac72} | \boxed{\dfrac{7}{-2}} | \boxed{-7/2} | \boxed{7/(-2)} | \boxed{- 3.5}
0.75 == x=\frac{-3}{-4} | \boxed{-3/-4} ;; 0 == -0 | 0.0 ;; 0 != | \boxed{} | \boxed{1/0} | 1/0

# Powers of ten.
100000 == \boxed{10^5} | \boxed{10^{5}} | \boxed{1e5} | \boxed{1\times 10^5} | \boxed{1 x 10^5}
10^{5} == \boxed{100000} ;; 0.001 == \boxed{10^{-3}} | \boxed{1e-3} ;; 3 != \boxed{3 \times 10^5}
10 != \boxed{10^5} | 10^5 ;; 1 != answer: 1e9 | \boxed{10} ;; 6.02e23 == \boxed{6.02\cdot10^{23}}

# Fractions and mixed numbers, divisions, an answer said twice.
3/4 == \boxed{\dfrac{3}{4}} | \boxed{\frac34} | \boxed{\frac3{4}} | \boxed{\nicefrac{3}{4}} | 75/100
3/4 == \boxed{\frac{3}{4} \text{ or } 0.75} | \boxed{0.75=\frac34} | \boxed{3\div4} | \boxed{3/4ths}
3/4 == \boxed{\left( \frac { 3 } { 4 } \right)} | about $\frac{3}{4}$ of it | \boxed{¾} | .75
1.5 == \boxed{1\frac{1}{2}} | 1 1/2 | \boxed{6\div4} | \boxed{1½} ;; 5/6 != \boxed{5/6/7}
11/2 != \boxed{1\frac12} ;; (\frac{11}{2},3) != \boxed{(1\frac12,3)}
1/3 != 0.3333333333 | \boxed{0.333...}
7/4 == \boxed{07/04} ;; 7 == 007 | +7 | 3 + 4 = 7 ;; 24 != \boxed{\frac{24}{x}} | \boxed{24/n}

# LaTeX's ways to write one thing, and things that only look alike.
\frac{\sqrt{2}}{2} == \boxed{\dfrac{\sqrt 2}2} | \boxed{\frac{\sqrt2}{2}} | \boxed{\tfrac{√2}{2}}
\frac{\pi}{4} == \boxed{\frac\pi4} | \boxed{\dfrac{π}{4}} ;; 4 != \boxed{\frac{\pi}{4}}
24 == \boxed{\boldsymbol{24}} | \boxed{24 \operatorname{cm}}
24 == \boxed{\large 24} | \boxed{\textbf{\text{24}}}
3/4 == \boxed{{3 \over 4}} | \boxed{\frac{{3}}{{4}}} ;; \frac{\pi}{4} == \boxed{{\pi \over 4}}
24 == \boxed{\textit{24}} | \boxed{\textbf{24}} | \boxed{\underline{24}} | \boxed{\mathbf{24}}
24 == \boxed{\approx 24} | \boxed{x \approx 24} | \boxed{approximately 24} | \boxed{~24} | #### ~24
24 == \boxed{[24]} | \boxed{\{24\}} | \boxed{\text{about }\{24\}} | [[24]] | \boxed{**24**}
24 == \boxed{_24_} | \boxed{\,24\,} | \boxed{\text{\$}24} | \boxed{24\text{.}} | \boxed{$24$}
x^2 == \boxed{x^{2}} ;; x^{23} != \boxed{x^{2}3} ;; 3120_5 == \boxed{3120_{5}} ;; 2x == \boxed{2*x}
\frac{1}{2x} != \boxed{\frac{12}{x}} ;; \sqrt{2} != \boxed{2} | \boxed{\sqrt[3]{2}} | \sqrt2 is it

# An empty or a worded box behind the answer's.
24 == \boxed{24} as in \boxed{} | Put it in \boxed{...}: \boxed{24}
24 == \boxed{24} and not \boxed | \boxed{24}, \boxed{your answer}
24 == \boxed{24}. (I put the final answer in \boxed{}.)
5 != I computed 5. Therefore \boxed{}

# Chinese.
24 == 答案是24 | 答案是 24 个 | 所以，答案是：24。 | **答案**：２４ | 最终答案为 \boxed{24}
24 == 小明有24个苹果。 | 共 ２４ 个
24 == The answer is：24，not 30 | \boxed{24 个苹果} | 答案是24。因为 6*4 = 24
24 != 答案是24或25 | 答案是不是24 | \boxed{24千}
3 != \boxed{3万} | 答案是3万

# Words.
Blue == The answer is blue. | \boxed{\text{blue}} | \boxed{\textbf{ Blue }}
B == \boxed{(B)} | \boxed{B.} | The answer is (B). | \boxed{\text{(B)}} ;; (B) == \boxed{b}
C == \boxed{\textbf{(C)}\ 24} | \boxed{C. 24} | Answer: C because 3 > 2
24 == \boxed{\textbf{(C)}\ 24}
(C) 24 == \boxed{C} | \boxed{24} ;; (C) 24 != \boxed{B} | \boxed{(D) 24} | \boxed{(C) 25}
C != Answer: not C ;; A != Answer: A or B
A, C == \boxed{A and C} ;; A, B != \boxed{AB} ;; red != blue | \boxed{blue}
July 4 == \boxed{July 4} ;; 1:00 == \boxed{1:00} ;; 4 != \boxed{3:4} ;; 3:4 == \boxed{3 : 4}
x + 1 == \boxed{x+1} ;; x+2 != \boxed{x+1} ;; - == \boxed{-} ;; ? == Answer: ? ;; $ != Answer: $
"""


def test_answers_table():
    """Every kind of right and wrong answer has a row above."""
    rows = [row for row in ANSWERS.splitlines() if row and not row.startswith("# ")]
    for row in re.split("\n| ;; ", "\n".join(rows)):
        answer, responses = re.split(" [=!]=(?: |$)", row.replace("¶", "\n"))
        for response in re.split(r" \|(?: |$)", responses):
            assert is_correct(response, answer) is (" == " in row), (answer, response)


# Texts that are repeated, ¶ is a new line.
HOSTILE = (
    r"9|{|\boxed{|\frac{|#|1,111|1/|-|####1|\text{|^|=| |1 |answer is |\frac{1} |1 1/|9e9"
    r"|5 \times 10^|答案是|中|¶|(|[[|a=|x_{1}|f(|, aa| or 1|aa |1 million |\boxed{}|\frac{{}"
    r"|\boxed{9{9}|**|~|{}|#### |answer¶|\forall,|(x,|conclusion|conclusion |conclusion: right [ "
    r"|conclusion:**********************************"
)


def test_hostile_text_takes_linear_time():
    """A million characters of anything are graded, and read for a judgement, in less than two
    seconds."""
    units = HOSTILE.replace("¶", "\n").split("|")
    texts = [unit * (10**6 // len(unit)) for unit in units]
    texts += ["\\boxed{" + "9" * 10**6 + "}", "the answer is " + "9" * 10**6, "9**9**9"]
    texts += ["\\boxed{" + "{" * 10**6, "\\frac" + " " * 10**6, "5" + " " * 10**6 + "/"]
    # as much as is read of an answer, so that no pattern takes its square
    texts += [f"\\boxed{{{text[:990]}x}}" for text in texts]
    for text in texts:
        start = time.process_time()
        assert not is_correct(text, "8")
        is_correct("8", text)
        judgement(text)
        assert time.process_time() - start < 2, f"{text[:20]!r}..."


# What random texts are made of, between ~.
PIECES = (
    "Conclusion: right~\\boxed{~}~{~\\frac~####~answer is ~**~1,234~-~.5~/~\n~\r\n~\ufeff~\x1b[2J"
    "~\x00~\u2028~'~[~]~(~)~$~%~^~_~\\text{~e9~1e999~\U0001f600~\u0663~\ud800~nan~\\~null~:~,~{}~|"
    '~"~{"question": "1+1", "answer": "2"}~{"answer": []}'
)


def random_text(rng):
    """Up to 10 kB of PIECES."""
    pieces = PIECES.split("~")
    limit = rng.choice((30, 300, 3000, 10000))
    text = ""
    while len(text) < limit:
        text += rng.choice(pieces) * rng.choice((1, 1, 1, 3, 300))
    return text[:limit]


def fuzz(folder, count):
    """Random texts: no exception but InputError, and no more than a second of processor time."""
    path = folder / "fuzz.jsonl"
    rng = random.Random(0)
    for _ in range(count):
        text = random_text(rng)
        start = time.process_time()
        judgement(text)
        is_correct(text, "7")
        is_correct("7", text)
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        with contextlib.suppress(InputError):
            data.read_jsonl(path, data.to_problem)
        assert time.process_time() - start < 1, text[:99]


def test_fuzz(tmp_path):
    """A thousand random texts."""
    fuzz(tmp_path, 1000)


def long_fuzz(tmp_path):
    """A hundred thousand."""
    fuzz(tmp_path, 100_000)
