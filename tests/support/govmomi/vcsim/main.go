// vcsim serves govmomi's simulated vCenter on a loopback port for as long as its standard input stays open.
//
// The flags have the names of govmomi's own vcsim, whose main package the module proxy does not serve. When it is
// ready it prints one line: GOVC_URL=https://user:password@127.0.0.1:port/sdk
package main

import (
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"log"
	"net/url"
	"os"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"

	_ "github.com/vmware/govmomi/lookup/simulator"
	_ "github.com/vmware/govmomi/pbm/simulator"
	_ "github.com/vmware/govmomi/ssoadmin/simulator"
	_ "github.com/vmware/govmomi/sts/simulator"
	_ "github.com/vmware/govmomi/vapi/simulator"
)

func main() {
	log.SetFlags(0)
	model := simulator.VPX()
	listen := flag.String("l", "127.0.0.1:0", "listen address")
	user := flag.String("username", "", "login user name (any user logs in by default)")
	password := flag.String("password", "", "login password")
	esx := flag.Bool("esx", false, "simulate a standalone ESXi host")
	version := flag.String("api-version", "", "API version (not with -esx)")
	secure := flag.Bool("tls", true, "serve HTTPS")
	flag.IntVar(&model.Datacenter, "dc", model.Datacenter, "number of datacenters")
	flag.IntVar(&model.Cluster, "cluster", model.Cluster, "number of clusters per datacenter")
	flag.IntVar(&model.ClusterHost, "host", model.ClusterHost, "number of hosts per cluster")
	flag.IntVar(&model.Host, "standalone-host", model.Host, "number of standalone hosts per datacenter")
	flag.IntVar(&model.Machine, "vm", model.Machine, "number of VMs per resource pool")
	flag.IntVar(&model.Datastore, "ds", model.Datastore, "number of local datastores")
	flag.IntVar(&model.Portgroup, "pg", model.Portgroup, "number of distributed port groups per datacenter")
	flag.IntVar(&model.Folder, "folder", model.Folder, "number of folders around the datacenters")
	flag.IntVar(&model.Pool, "pool", model.Pool, "number of resource pools per cluster")
	flag.BoolVar(&model.Autostart, "autostart", model.Autostart, "power the VMs on")
	copies := flag.Int("copies", 0, "show each VM this many times more (in memory; fast, unlike -vm)")
	flag.Parse()

	if *esx {
		machines, datastores := model.Machine, model.Datastore
		model = simulator.ESX()
		model.Machine, model.Datastore = machines, datastores
	} else if *version != "" {
		model.ServiceContent.About.ApiVersion = *version
	}
	if err := model.Create(); err != nil {
		log.Fatal(err)
	}
	defer model.Remove()
	copyMachines(model.Map(), *copies)

	model.Service.Listen = &url.URL{Host: *listen}
	if *user != "" {
		model.Service.Listen.User = url.UserPassword(*user, *password)
	}
	if *secure {
		model.Service.TLS = new(tls.Config)
	}
	model.Service.RegisterEndpoints = true
	server := model.Service.NewServer()
	defer server.Close()
	fmt.Printf("GOVC_URL=%s\n", server.URL)

	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		log.Print(err)
	}
}

// copyMachines enlarges the inventory for readers: a copy has a name and ids of its own, and shares the rest. Making
// VMs through the simulated API takes some 20 ms each, too slow for thousands.
func copyMachines(registry *simulator.Registry, copies int) {
	if copies == 0 {
		return
	}
	for _, entity := range registry.All("VirtualMachine") {
		original := entity.(*simulator.VirtualMachine)
		folder := registry.Get(*original.Parent).(*simulator.Folder)
		for number := 1; number <= copies; number++ {
			vm := &simulator.VirtualMachine{VirtualMachine: original.VirtualMachine}
			config := *original.Config
			vm.Name = fmt.Sprintf("%s_copy%d", original.Name, number)
			config.Name = vm.Name
			config.Uuid = uuid.NewString()
			config.InstanceUuid = uuid.NewString()
			vm.Config = &config
			vm.Summary.Config.Name = config.Name
			vm.Summary.Config.Uuid = config.Uuid
			vm.Summary.Config.InstanceUuid = config.InstanceUuid
			vm.Self = types.ManagedObjectReference{}
			reference := registry.Put(vm).Reference()
			vm.Summary.Vm = &reference
			folder.ChildEntity = append(folder.ChildEntity, reference)
		}
	}
}
