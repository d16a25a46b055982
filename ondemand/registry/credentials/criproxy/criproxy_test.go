package criproxy

import (
	"context"
	"encoding/base64"
	"net"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fakeCRI is containerd's image service. It counts what it is asked.
type fakeCRI struct {
	runtime.UnimplementedImageServiceServer
	pull func(context.Context, *runtime.PullImageRequest) (*runtime.PullImageResponse, error)

	mu     sync.Mutex
	called map[string]int
}

func (f *fakeCRI) count(method string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called[method]++
}

func (f *fakeCRI) PullImage(ctx context.Context, req *runtime.PullImageRequest) (*runtime.PullImageResponse, error) {
	if f.pull == nil {
		return &runtime.PullImageResponse{ImageRef: req.GetImage().GetImage()}, nil
	}
	return f.pull(ctx, req)
}

func (f *fakeCRI) ListImages(ctx context.Context, _ *runtime.ListImagesRequest) (*runtime.ListImagesResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	_ = grpc.SetHeader(ctx, metadata.Pairs("head", strings.Join(md["from-kubelet"], ",")))
	_ = grpc.SetTrailer(ctx, metadata.Pairs("tail", "t"))
	images := &runtime.ListImagesResponse{Images: []*runtime.Image{{Id: "id"}}}
	images.ProtoReflect().SetUnknown(unknownField)
	return images, nil
}

func (f *fakeCRI) StreamImages(_ *runtime.StreamImagesRequest, stream grpc.ServerStreamingServer[runtime.StreamImagesResponse]) error {
	for range 2 {
		images := &runtime.StreamImagesResponse{}
		images.ProtoReflect().SetUnknown(unknownField)
		if err := stream.Send(images); err != nil {
			return err
		}
	}
	return status.Error(codes.ResourceExhausted, "enough")
}

// unknownField is a field with number 1000 that is no field of the CRI today: varint 1.
var unknownField = protoreflect.RawFields{0xc0, 0x3e, 0x01}

// listen serves on a unix socket until the test ends.
func listen(t *testing.T, server *grpc.Server) (address string) {
	t.Helper()
	address = filepath.Join(t.TempDir(), "s.sock")
	l, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l)
	}()
	t.Cleanup(func() { server.Stop(); <-done })
	return address
}

// start returns a proxy before the fake, and kubelet's connection to the proxy.
func start(t *testing.T, fake *fakeCRI) (*Proxy, *grpc.ClientConn) {
	t.Helper()
	fake.called = make(map[string]int)
	containerd := grpc.NewServer(
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			fake.count(info.FullMethod)
			return handle(ctx, req)
		}),
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
			fake.count(info.FullMethod)
			return handle(srv, stream)
		}))
	runtime.RegisterImageServiceServer(containerd, fake)
	proxy, err := New(Options{Address: listen(t, containerd)})
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	proxy.Register(server)
	conn, err := grpc.NewClient("unix://"+listen(t, server), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		if err := proxy.Close(); err != nil {
			t.Error(err)
		}
	})
	return proxy, conn
}

func pullOf(image string, auth *runtime.AuthConfig) *runtime.PullImageRequest {
	return &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: image}, Auth: auth}
}

// answer is what Get returned.
type answer struct{ user, secret string }

func get(t *testing.T, p *Proxy, image, host string, refused bool) answer {
	t.Helper()
	user, secret, err := p.Get(t.Context(), image, host, refused)
	if err != nil {
		t.Fatal(err)
	}
	return answer{user, secret}
}

// Every method of the interface that containerd implements must arrive there, so that none is forgotten when the CRI grows.
func TestEveryMethodIsForwarded(t *testing.T) {
	fake := &fakeCRI{}
	_, conn := start(t, fake)
	for method := range reflect.TypeFor[runtime.ImageServiceServer]().Methods() {
		if !method.IsExported() {
			continue
		}
		full := "/runtime.v1.ImageService/" + method.Name
		desc := grpc.StreamDesc{ServerStreams: true, ClientStreams: true} // as general as any
		stream, err := conn.NewStream(t.Context(), &desc, full)
		if err != nil {
			t.Fatalf("%s: %v", method.Name, err)
		}
		if err := stream.SendMsg(&runtime.ImageFsInfoRequest{}); err != nil {
			t.Fatalf("%s: %v", method.Name, err)
		}
		_ = stream.CloseSend()
		_ = stream.RecvMsg(&runtime.ImageFsInfoResponse{}) // most are not implemented by the fake
		fake.mu.Lock()
		if fake.called[full] != 1 {
			t.Errorf("%s arrived %d times", method.Name, fake.called[full])
		}
		fake.mu.Unlock()
	}
}

// The proxy hands on streams of answers only. When this fails, the CRI has got another kind.
func TestStreamsAreAnswers(t *testing.T) {
	for _, s := range runtime.ImageService_ServiceDesc.Streams {
		if s.ClientStreams {
			t.Errorf("%s has a stream of requests", s.StreamName)
		}
	}
}

func TestCallIsHandedOnAsItIs(t *testing.T) {
	fake := &fakeCRI{}
	_, conn := start(t, fake)
	ctx := metadata.AppendToOutgoingContext(t.Context(), "from-kubelet", "x")
	var header, trailer metadata.MD
	listed, err := runtime.NewImageServiceClient(conn).ListImages(ctx, &runtime.ListImagesRequest{}, grpc.Header(&header), grpc.Trailer(&trailer))
	if err != nil {
		t.Fatal(err)
	}
	if len(listed.GetImages()) != 1 || listed.GetImages()[0].GetId() != "id" {
		t.Errorf("got images %v", listed.GetImages())
	}
	if got := listed.ProtoReflect().GetUnknown(); string(got) != string(unknownField) {
		t.Errorf("unknown fields of the answer: got %x, want %x", got, unknownField)
	}
	if strings.Join(header["head"], ",") != "x" || strings.Join(trailer["tail"], ",") != "t" {
		t.Errorf("got header %v, trailer %v", header, trailer)
	}
}

func TestStreamIsHandedOn(t *testing.T) {
	_, conn := start(t, &fakeCRI{})
	stream, err := runtime.NewImageServiceClient(conn).StreamImages(t.Context(), &runtime.StreamImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		images, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if got := images.ProtoReflect().GetUnknown(); string(got) != string(unknownField) {
			t.Errorf("got %x, want %x", got, unknownField)
		}
	}
	if _, err := stream.Recv(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("got error %v, want containerd's", err)
	}
}

func TestPullIsRememberedBeforeItIsForwarded(t *testing.T) {
	fake := &fakeCRI{}
	proxy, conn := start(t, fake)
	request := pullOf("r.io/app:1", &runtime.AuthConfig{Username: "u", Password: "p"})
	request.ProtoReflect().SetUnknown(unknownField)
	fake.pull = func(ctx context.Context, req *runtime.PullImageRequest) (*runtime.PullImageResponse, error) {
		if !proto.Equal(req, request) {
			t.Error("the request has changed on its way")
		}
		if _, ok := ctx.Deadline(); !ok {
			t.Error("the deadline is lost")
		}
		if got := get(t, proxy, "r.io/app:1", "r.io", false); got != (answer{"u", "p"}) {
			t.Error("the credential is not known while the pull lasts")
		}
		return nil, status.Error(codes.NotFound, "no such image")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err := runtime.NewImageServiceClient(conn).PullImage(ctx, request)
	if status.Code(err) != codes.NotFound || status.Convert(err).Message() != "no such image" {
		t.Errorf("got error %v, want containerd's", err)
	}
}

func TestCancellationIsHandedOn(t *testing.T) {
	fake := &fakeCRI{}
	_, conn := start(t, fake)
	arrived, ended := make(chan struct{}), make(chan struct{})
	fake.pull = func(ctx context.Context, _ *runtime.PullImageRequest) (*runtime.PullImageResponse, error) {
		close(arrived)
		<-ctx.Done()
		close(ended)
		return nil, ctx.Err()
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := runtime.NewImageServiceClient(conn).PullImage(ctx, pullOf("r.io/app:1", nil))
		done <- err
	}()
	<-arrived
	cancel()
	<-ended
	if err := <-done; status.Code(err) != codes.Canceled {
		t.Errorf("got error %v", err)
	}
}

func TestFormsOfAuthConfig(t *testing.T) {
	basic := base64.StdEncoding.EncodeToString([]byte("u:p"))
	for _, test := range []struct {
		name, image, host string
		auth              *runtime.AuthConfig
		want              answer
	}{
		{"none", "r.io/app:1", "r.io", nil, answer{}},
		{"empty", "r.io/app:1", "r.io", &runtime.AuthConfig{}, answer{}},
		{"user and password", "r.io/app:1", "r.io", &runtime.AuthConfig{Username: "u", Password: "p"}, answer{"u", "p"}},
		{"base64", "r.io/app:1", "r.io", &runtime.AuthConfig{Auth: basic}, answer{"u", "p"}},
		{"broken base64", "r.io/app:1", "r.io", &runtime.AuthConfig{Auth: "!"}, answer{}},
		{"identity token", "r.io/app:1", "r.io", &runtime.AuthConfig{IdentityToken: "t"}, answer{"", "t"}},
		{"registry token", "r.io/app:1", "r.io", &runtime.AuthConfig{RegistryToken: "t"}, answer{}},
		{"server", "r.io/app:1", "r.io", &runtime.AuthConfig{ServerAddress: "https://r.io/v2/", Auth: basic}, answer{"u", "p"}},
		{"server without scheme", "r.io/app:1", "r.io", &runtime.AuthConfig{ServerAddress: "r.io", Auth: basic}, answer{"u", "p"}},
		{"for another server", "r.io/app:1", "r.io", &runtime.AuthConfig{ServerAddress: "s.io", Auth: basic}, answer{}},
		{"for a mirror", "r.io/app:1", "s.io", &runtime.AuthConfig{ServerAddress: "s.io", Auth: basic}, answer{"u", "p"}},
		{"not for a mirror", "r.io/app:1", "s.io", &runtime.AuthConfig{Auth: basic}, answer{}},
		{"broken server", "r.io/app:1", "r.io", &runtime.AuthConfig{ServerAddress: "https://", Auth: basic}, answer{}},
		{"Docker Hub", "nginx", "registry-1.docker.io", &runtime.AuthConfig{ServerAddress: "https://index.docker.io/v1/", Auth: basic}, answer{"u", "p"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			proxy, conn := start(t, &fakeCRI{})
			if _, err := runtime.NewImageServiceClient(conn).PullImage(t.Context(), pullOf(test.image, test.auth)); err != nil {
				t.Fatal(err)
			}
			if got := get(t, proxy, test.image, test.host, false); got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

func TestPullsDoNotSpoilEachOther(t *testing.T) {
	proxy, conn := start(t, &fakeCRI{})
	good := &runtime.AuthConfig{Username: "u", Password: "good"}
	for _, req := range []*runtime.PullImageRequest{
		pullOf("r.io/app:1", good),
		pullOf("r.io/other:1", &runtime.AuthConfig{Username: "u", Password: "bad"}),
		pullOf("r.io/app:2", nil), // forgets nothing
		pullOf("r.io/private:1", nil),
	} {
		if _, err := runtime.NewImageServiceClient(conn).PullImage(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	if got := get(t, proxy, "r.io/app:3", "r.io", false); got.secret != "good" {
		t.Error("a pull without a credential, or another image's, took the good one away")
	}
	if got := get(t, proxy, "r.io/private:1", "r.io", false); got.secret != "" {
		t.Error("a repository was given another one's credential")
	}
	bad := pullOf("r.io/app:1", &runtime.AuthConfig{Username: "u", Password: "bad"})
	if _, err := runtime.NewImageServiceClient(conn).PullImage(t.Context(), bad); err != nil {
		t.Fatal(err)
	}
	if got := get(t, proxy, "r.io/app:1", "r.io", false); got.secret != "bad" {
		t.Error("the newest credential is not tried first")
	}
	if got := get(t, proxy, "r.io/app:1", "r.io", true); got.secret != "good" {
		t.Error("a wrong credential took the good one of the same repository away")
	}
}

func TestContainerdIsAway(t *testing.T) {
	proxy, err := New(Options{Address: filepath.Join(t.TempDir(), "none.sock")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = proxy.Close() }()
	pull := pullOf("r.io/app:1", &runtime.AuthConfig{Username: "u", Password: "s3cret"})
	_, err = proxy.forward(t.Context(), runtime.ImageService_PullImage_FullMethodName, pull)
	if status.Code(err) != codes.Unavailable || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("got error %v", err)
	}
}
