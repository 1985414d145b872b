# main overlap loop of first partition: from the BRA before gsb0 0x1 region
python3 - "$1" <<'P'
import re,sys,collections
L=[l for l in open(sys.argv[1]+'.sass') if re.search(r'/\*[0-9a-f]{4,5}\*/',l)]
ins=[(int(re.search(r'/\*([0-9a-f]{4,5})\*/',l).group(1),16), l.split('*/')[1].strip()) for l in L]
i1=[i for i,(a,x) in enumerate(ins) if 'DEPBAR.LE gsb0, 0x1' in x]
for i in i1[:2]:
    # backward branch after i
    for j in range(i,len(ins)):
        m=re.search(r'BRA (0x[0-9a-f]+)',ins[j][1])
        if m and int(m.group(1),16)<ins[i][0]: break
    t=int(m.group(1),16); k=[n for n,(a,x) in enumerate(ins) if a==t][0]
    c=collections.Counter(re.sub(r'^@!?U?P\d+ ','',x).split()[0].split('.')[0].rstrip(';') for a,x in ins[k:j+1])
    print(j-k+1, dict(c.most_common(30)))
    d0=[n for n in range(i,j) if 'DEPBAR.LE gsb0, 0x0' in ins[n][1]][0]
    c2=collections.Counter(re.sub(r'^@!?U?P\d+ ','',x).split()[0].split('.')[0] for a,x in ins[i:d0])
    print('  between waits', d0-i, {q:c2[q] for q in ('FMNMX','FFMA','MUFU','FADD','FMUL','F2FP','PRMT')})
P
