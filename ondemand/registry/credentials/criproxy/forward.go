package criproxy

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A message that nobody here looks at is read into an Empty: all of its fields are unknown to that, and unknown fields are written again
// as they were.

// Register makes server answer every method of the CRI image service that the CRI's definition has, present and future: its list of
// methods is what is registered. server must not log requests, which contain secrets.
func (p *Proxy) Register(server *grpc.Server) {
	server.RegisterService(p.describe(&runtime.ImageService_ServiceDesc), p)
}

// describe returns a service with the methods of the given one, each handed on.
func (p *Proxy) describe(service *grpc.ServiceDesc) *grpc.ServiceDesc {
	desc := &grpc.ServiceDesc{ServiceName: service.ServiceName, HandlerType: (*any)(nil), Metadata: service.Metadata}
	for _, m := range service.Methods {
		method := "/" + service.ServiceName + "/" + m.MethodName
		desc.Methods = append(desc.Methods, grpc.MethodDesc{MethodName: m.MethodName, Handler: p.unary(method)})
	}
	for _, s := range service.Streams {
		method := "/" + service.ServiceName + "/" + s.StreamName
		s.Handler = p.stream(method, s)
		desc.Streams = append(desc.Streams, s)
	}
	return desc
}

// request returns a message for the requests of a method.
func request(method string) proto.Message {
	if method == runtime.ImageService_PullImage_FullMethodName {
		return new(runtime.PullImageRequest)
	}
	return new(emptypb.Empty)
}

// unary returns the handler of a method with one request and one answer.
func (p *Proxy) unary(method string) grpc.MethodHandler {
	return func(srv any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
		req := request(method)
		if err := decode(req); err != nil {
			return nil, err
		}
		if intercept == nil {
			return p.forward(ctx, method, req)
		}
		info := &grpc.UnaryServerInfo{Server: srv, FullMethod: method}
		return intercept(ctx, req, info, func(ctx context.Context, req any) (any, error) {
			return p.forward(ctx, method, req)
		})
	}
}

// forward makes the same call to containerd. Its error already has a status, and is handed back as it is.
func (p *Proxy) forward(ctx context.Context, method string, req any) (any, error) {
	if pull, ok := req.(*runtime.PullImageRequest); ok {
		p.learn(pull)
	}
	var header, trailer metadata.MD
	answer := new(emptypb.Empty)
	err := p.conn.Invoke(withMetadata(ctx), method, req, answer, grpc.Header(&header), grpc.Trailer(&trailer))
	// These fail only when kubelet is gone, and then nobody reads the answer either.
	_ = grpc.SetHeader(ctx, header)
	_ = grpc.SetTrailer(ctx, trailer)
	if err != nil {
		return nil, err
	}
	return answer, nil
}

// stream returns the handler of a method with one request and a stream of answers. The CRI has no other streams.
func (p *Proxy) stream(method string, desc grpc.StreamDesc) grpc.StreamHandler {
	return func(_ any, kubelet grpc.ServerStream) error {
		req := request(method)
		if err := kubelet.RecvMsg(req); err != nil {
			return err
		}
		ctx, cancel := context.WithCancel(withMetadata(kubelet.Context()))
		defer cancel()
		containerd, err := p.conn.NewStream(ctx, &desc, method)
		if err != nil {
			return err
		}
		// A request that cannot be sent is a stream that has ended: why is what is received.
		if err := containerd.SendMsg(req); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if err := containerd.CloseSend(); err != nil {
			return err
		}
		if header, err := containerd.Header(); err == nil {
			_ = kubelet.SetHeader(header) // fails only when kubelet is gone
		}
		defer func() { kubelet.SetTrailer(containerd.Trailer()) }()
		for {
			answer := new(emptypb.Empty)
			if err := containerd.RecvMsg(answer); errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return err
			}
			if err := kubelet.SendMsg(answer); err != nil {
				return err
			}
		}
	}
}

// withMetadata passes on the metadata that kubelet sent.
func withMetadata(ctx context.Context) context.Context {
	received, _ := metadata.FromIncomingContext(ctx)
	return metadata.NewOutgoingContext(ctx, received.Copy())
}
