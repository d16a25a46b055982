package x
import ("testing";"os";"io";"archive/tar";"bufio";"fmt";"time"
"github.com/erofs-snapshotter/erofs-snapshotter/converter/tarstream")
func TestX(t *testing.T){
 p:=os.Getenv("TAR")
 buf:=make([]byte,1<<20)
 for i:=0;i<3;i++{
 f,_:=os.Open(p); s:=time.Now(); r:=tarstream.NewReader(f,tarstream.Limits{}); n:=0;var b int64
 for { _,err:=r.Next(); if err==io.EOF{break}; if err!=nil{t.Fatal(err)}; n++; for r.Stored()>0 { k,err:=r.Read(buf); if err!=nil{t.Fatal(err)}; b+=int64(k)}}
 fmt.Println("tarstream",n,b,r.Offset(),time.Since(s)); f.Close()
 f,_=os.Open(p); s=time.Now(); g:=tar.NewReader(bufio.NewReaderSize(f,128<<10)); n=0; b=0
 for { _,err:=g.Next(); if err==io.EOF{break}; if err!=nil{t.Fatal(err)}; n++; for { k,err:=g.Read(buf); b+=int64(k); if err==io.EOF{break}; if err!=nil{t.Fatal(err)}}}
 fmt.Println("archive/tar",n,b,time.Since(s)); f.Close()
 }
}
