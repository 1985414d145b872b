import random
def sim(prefix,new,GROUP,ROWS,TILE,CONS=2):
    length=prefix+new
    if length<TILE: return
    BR=ROWS*CONS
    for fr in range(0,new*GROUP,BR):
        first=length-new+fr//GROUP
        end=length-new+min((fr+BR-1)//GROUP,new-1)+1
        tiles=-(-end//TILE); whole=(first+1)//TILE
        for r in list(range(fr,min(fr+BR,new*GROUP),7))+[fr]:
            pos=length-new+min(r//GROUP,new-1)
            seen=[0]*length
            for i in range(tiles):
                t=tiles-1-i
                p=min(t*TILE,length-TILE)
                assert p>=0 and p+TILE<=length
                for c in range(p,p+TILE):
                    if i==0: vis=c<=pos and c>=t*TILE
                    elif i<tiles-whole: vis=c<=pos; assert p==t*TILE
                    else: vis=True; assert p==t*TILE
                    seen[c]+=vis
            assert seen==[1 if c<=pos else 0 for c in range(length)],(prefix,new,r)
random.seed(0)
for _ in range(150):
    sim(random.randint(0,500),random.randint(1,300),random.choice([1,4,8]),64,128)
    sim(random.randint(0,500),random.randint(1,300),random.choice([4,8]),64,64)
for pn in [(0, 128), (0, 129), (0, 300), (127, 1), (128, 1), (200, 56), (255, 1), (256, 128), (131, 130),(1000,33),(639,61),(383,97),(128,128),(1,255),(95,33)]: 
    for g in (1,4,8): sim(*pn,g,64,128)
print("ok")
# protocol: deadlock simulation with adversarial scheduling
def proto(S,items,turns=True,seed=0,overlap=True):
    rnd=random.Random(seed)
    bars={}
    class B:
        def __init__(s,c): s.c=c; s.p=c; s.phase=0
        def arrive(s): 
            s.p-=1; assert s.p>=0
            if s.p==0: s.phase+=1; s.p=s.c
        def ok(s,par): return (s.phase&1)!=par
    kf=[B(1) for _ in range(S)];vf=[B(1) for _ in range(S)];ke=[B(2) for _ in range(S)];ve=[B(2) for _ in range(S)];qf=B(1);qe=B(2);t=[B(1),B(1)]
    t[0].arrive()
    K=[None]*S;V=[None]*S
    def prod():
        k=v=0
        for r,n in enumerate(items):
            while not qe.ok((r&1)^1): yield
            qf.arrive()
            for i in range(n):
                a=k%S
                while not ke[a].ok(((k//S)&1)^1): yield
                K[a]=(r,i); kf[a].arrive(); k+=1; yield
                if i>0:
                    a=v%S
                    while not ve[a].ok(((v//S)&1)^1): yield
                    V[a]=(r,i-1); vf[a].arrive(); v+=1; yield
            a=v%S
            while not ve[a].ok(((v//S)&1)^1): yield
            V[a]=(r,n-1); vf[a].arrive(); v+=1; yield
    def cons(c):
        k=v=tn=0
        for r,n in enumerate(items):
            while not qf.ok(r&1): yield
            a=k%S
            while not kf[a].ok((k//S)&1): yield
            assert K[a]==(r,0); yield
            assert K[a]==(r,0); ke[a].arrive(); k+=1
            for i in range(1,n):
                if turns and i>=2:
                    while not t[c].ok(tn&1): yield
                    tn+=1
                a=k%S; b=v%S
                while not kf[a].ok((k//S)&1): yield
                assert K[a]==(r,i)
                while not vf[b].ok((v//S)&1): yield
                assert V[b]==(r,i-1)
                if turns and i>=2: t[1-c].arrive()
                yield
                assert K[a]==(r,i); ke[a].arrive(); k+=1
                yield
                while not vf[b].ok((v//S)&1): yield
                assert V[b]==(r,i-1); ve[b].arrive(); v+=1
            b=v%S
            while not vf[b].ok((v//S)&1): yield
            assert V[b]==(r,n-1); yield
            ve[b].arrive(); v+=1; qe.arrive(); yield
    th=[prod(),cons(0),cons(1)]; idle=0
    while th:
        x=rnd.choice(th)
        try: next(x)
        except StopIteration: th.remove(x)
        idle+=1
        assert idle<200000,"deadlock"
for s in range(60):
    rnd=random.Random(s)
    proto(rnd.choice([2,3,4]),[rnd.randint(1,9) for _ in range(10)],turns=s%2==0,seed=s)
print("protocol ok")
